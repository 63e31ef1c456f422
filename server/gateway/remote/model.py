"""A model on another server: where it is, whether it is worth asking, and what was heard of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import httpx2

from server.core.clock import Clock
from server.core.errors import RemoteFailed
from server.gateway.agent import Agent
from server.gateway.lane import Lane
from server.gateway.remote.address import ForbiddenAddress, Look
from server.gateway.remote.breaker import Breaker, BreakerLimits, BreakerState
from server.gateway.remote.wire import RemoteUsage

UNKNOWN = 2**31
"""Context length of a remote that nobody told."""
_KEPT = 60.0
"""Seconds for which an idle connection is kept; many servers close it sooner themselves."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RemoteLimits:
    """Where a remote is and how it is treated. Times are in seconds."""

    base_url: str
    """Without a slash at its end."""
    model: str
    """What it is called there."""
    api_key: str | None = field(default=None, repr=False)
    connect_timeout: float = 5.0
    read_timeout: float = 60.0
    """Longest silence: to the first token, and between two."""
    connections: int = 200
    keepalive: int = 100
    """Of these, those that stay open between requests."""
    probe_every: float | None = 30.0
    """Pause between two looks at whether it is there; None: none."""
    breaker: BreakerLimits = field(default_factory=BreakerLimits)
    max_tokens: int | None = None
    """Output limit of a request that names none; None: its own."""


class Remote:
    """Belongs to the event loop. `close` ends its connections."""

    def __init__(self, name: str, limits: RemoteLimits, lane: Lane, clock: Clock) -> None:
        """`name`: what it is called here; `lane`: where requests wait for one of its connections."""
        self.name = name
        self.limits = limits
        self.lane = lane
        self.free = asyncio.Semaphore(limits.connections)
        """Connections for requests: the lane hands over some more, as it does to engines."""
        self.breaker = Breaker(limits.breaker, clock)
        self.requests: Counter[str] = Counter()
        """By outcome: `ok`, `refused`, `failed`, `aborted`."""
        self.probes: Counter[str] = Counter()
        """By outcome: `ok`, `failed`."""
        self.tokens: Counter[str] = Counter()
        """`prompt` and `completion`, as it counted them."""
        self.next_probe = clock.monotonic()
        """Monotonic seconds."""
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._client = _client(limits)
        self._closed = False

    def failure(self) -> RemoteFailed | None:
        """Say why it is not worth asking; None: it is."""
        if self._closed:
            return RemoteFailed(f"The remote {self.name!r} is no longer configured.")
        wait = self.breaker.wait()
        if wait is None:
            return None
        return RemoteFailed(
            f"The remote {self.name!r} has failed repeatedly and is not asked now.",
            retry_after=wait,
        )

    @contextlib.asynccontextmanager
    async def post(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[httpx2.Response]:
        """Send a request; yields the answer's head, its body unread. Raises `httpx2.HTTPError`.

        Raises `ForbiddenAddress` before anything is sent to where no remote may be.
        """
        look = Look()
        request = self._client.build_request(
            "POST", f"{self.limits.base_url}/{path}", json=body, extensions={"trace": look}
        )
        try:
            response = await self._client.send(request, stream=True)
        except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
            # A kept connection may be closed from the other side just when it is used again.
            if look.fresh:
                raise
            response = await self._client.send(request, stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    async def probe(self) -> None:
        """See whether it is there, and let the breaker know."""
        if self.limits.probe_every is not None:
            self.next_probe = self._clock.monotonic() + self.limits.probe_every
        well = await self._is_there()
        self.probes["ok" if well else "failed"] += 1
        if well:
            self.breaker.answered()
        else:
            self.failed(self.breaker.missed)

    def failed(self, tell: Callable[[], None]) -> None:
        """Let the breaker know of a failure by `tell`, and the log if it opens."""
        before = self.breaker.opened
        tell()
        if self.breaker.opened > before:
            wait = self.breaker.wait() or 0.0
            log.warning("The remote %s fails; it is not asked for %.0f s", self.name, wait)

    def used(self, usage: RemoteUsage) -> None:
        """Count tokens."""
        self.tokens["prompt"] += usage.prompt
        self.tokens["completion"] += usage.completion

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run what must have ended before the connections are closed."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """End what runs, and all connections."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    @property
    def up(self) -> bool:
        """Whether requests are sent to it."""
        return self.breaker.state is not BreakerState.OPEN

    async def _is_there(self) -> bool:
        """Ask for its models: any answer that is no failure and no refusal of the key will do."""
        try:
            request = self._client.build_request(
                "GET", f"{self.limits.base_url}/models", extensions={"trace": Look()}
            )
            async with asyncio.timeout(self.limits.read_timeout):
                response = await self._client.send(request, stream=True)
                await response.aclose()
        except (httpx2.HTTPError, ForbiddenAddress, TimeoutError):
            return False
        status = response.status_code
        return status < 500 and status not in (401, 403) and not response.is_redirect


def _client(limits: RemoteLimits) -> httpx2.AsyncClient:
    # One more than requests may have: a probe must not wait behind them and take that for a failure.
    most = limits.connections + 1
    pool = httpx2.Limits(
        max_connections=most,
        max_keepalive_connections=limits.keepalive,
        keepalive_expiry=_KEPT,
    )
    headers = {"user-agent": "onegpu", "accept-encoding": "identity"}
    if limits.api_key:
        headers["authorization"] = f"Bearer {limits.api_key}"
    client = httpx2.AsyncClient(
        headers=headers,
        timeout=httpx2.Timeout(limits.read_timeout, connect=limits.connect_timeout),
        limits=pool,
        follow_redirects=False,
        # No proxies, certificates or passwords from the environment of whoever starts the server.
        trust_env=False,
    )
    # One caller's cookie is none of another's affair.
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return client


@dataclass(frozen=True, slots=True)
class Distant:
    """A remote under its name here, with what applies to whoever asks it."""

    agent: Agent
    remote: Remote
