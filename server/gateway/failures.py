"""How many failures one address may have: so many at once, then so many a minute."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

from server.core.clock import Clock


class FailureLimiter:
    """Counts failures by address, in bounded memory.

    A virtual clock for each address says when its failures so far are paid off (GCRA): one number
    instead of a bucket, and what is paid off may be forgotten.
    """

    def __init__(
        self, clock: Clock, *, at_once: int = 10, per_minute: float = 10, addresses: int = 10_000
    ) -> None:
        """Beyond `addresses`, the one that failed longest ago is forgotten."""
        self._clock = clock
        self._interval = 60 / per_minute
        self._most_ahead = self._interval * (at_once - 1)
        self._capacity = addresses
        self._paid_off: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """Return how many addresses are remembered."""
        return len(self._paid_off)

    def wait(self, address: str) -> float:
        """Count a failure of `address`. Returns the seconds that it is too early, 0 if it is not.

        What is too early is not counted: who keeps on gets an answer now and then.
        """
        now, network = self._clock.monotonic(), network_of(address)
        ahead = max(0.0, self._paid_off.get(network, now) - now)
        if ahead > self._most_ahead:
            return ahead - self._most_ahead
        self._paid_off[network] = now + ahead + self._interval
        self._paid_off.move_to_end(network)
        self._forget(now)
        return 0.0

    def _forget(self, now: float) -> None:
        while len(self._paid_off) > self._capacity or next(iter(self._paid_off.values())) <= now:
            self._paid_off.popitem(last=False)


def network_of(address: str) -> str:
    """Return what one client can be told by: an IPv4 address, or the /64 that IPv6 hosts have."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.IPv6Address(int(ip) >> 64 << 64))
    return address


def is_loopback(address: str) -> bool:
    """Whether `address` is this machine."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback
