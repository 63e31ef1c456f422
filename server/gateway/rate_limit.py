"""Limits of one key: requests per minute with a burst, tokens per minute, requests at once.

Two token buckets and a count per key. Time is monotonic, so a clock that is set makes no difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from server.core.clock import Clock
from server.core.errors import InvalidRequest, RateLimited

_MINUTE = 60.0
_SWEEP_FROM = 256
"""Keys remembered before idle ones are looked for."""
_BUSY_RETRY = 1.0
"""Advice in seconds where only the end of the key's own requests helps: when that is, it knows."""


@dataclass(frozen=True, slots=True)
class RateLimits:
    """None: not limited."""

    requests_per_minute: float | None = None
    burst: int | None = None
    """Requests that may come at once; None: a minute's."""
    tokens_per_minute: int | None = None
    """Prompt and output together."""
    max_concurrent: int | None = None

    @property
    def request_capacity(self) -> float:
        """Most requests that the bucket holds."""
        if self.burst is not None:
            return float(max(1, self.burst))
        return max(1.0, self.requests_per_minute or 1.0)


class Bucket:
    """A token bucket that is refilled when somebody looks. May owe, and then refuses."""

    __slots__ = ("_now", "capacity", "level", "per_second")

    def __init__(self, capacity: float, per_second: float, now: float) -> None:
        """Start full. `now`: monotonic seconds."""
        self.capacity = capacity
        self.per_second = per_second
        self.level = capacity
        self._now = now

    def refill(self, now: float) -> None:
        """Add what has accrued."""
        if now > self._now:
            self.level = min(self.capacity, self.level + (now - self._now) * self.per_second)
            self._now = now

    def wait(self, amount: float) -> float:
        """Seconds until `amount` is there; 0 when it is."""
        missing = amount - self.level
        return 0.0 if missing <= _EPSILON * self.capacity else missing / self.per_second

    def put_back(self, amount: float) -> None:
        """Return what was taken and not used."""
        self.level = min(self.capacity, self.level + amount)


_EPSILON = 1e-9
"""Rounding of a refill: who waited exactly as long as told must not be refused."""


@dataclass(frozen=True, slots=True)
class Window:
    """One limit as clients are told of it."""

    limit: int
    remaining: int
    reset: float
    """Seconds until it is whole again."""


@dataclass(slots=True)
class _Account:
    limits: RateLimits
    requests: Bucket | None
    tokens: Bucket | None
    running: int = 0

    def refill(self, now: float) -> None:
        for bucket in (self.requests, self.tokens):
            if bucket is not None:
                bucket.refill(now)

    @property
    def untouched(self) -> bool:
        """Whether a new one would be the same."""
        buckets = (self.requests, self.tokens)
        return self.running == 0 and all(b is None or b.level >= b.capacity for b in buckets)


@dataclass(slots=True)
class Grant:
    """What one request has taken of its key's limits. `release` belongs in a `finally`."""

    _account: _Account
    _clock: Clock
    reserved: int = 0
    """Tokens taken for it."""
    released: bool = field(default=False, init=False)

    def reserve(self, tokens: int) -> None:
        """Take the tokens that it may come to use: prompt and output.

        Raises `RateLimited`, and `InvalidRequest` for more than the limit of a whole minute.
        """
        bucket = self._account.tokens
        if bucket is None:
            return
        if tokens > bucket.capacity:
            raise InvalidRequest(
                f"The request may use {tokens} tokens (prompt and max_tokens together), but this "
                f"key's limit is {bucket.capacity:.0f} per minute. Shorten it or lower max_tokens.",
                param="max_tokens",
            )
        bucket.refill(self._clock.monotonic())
        if (wait := bucket.wait(tokens)) > 0:
            raise RateLimited(
                f"This key may use {bucket.capacity:.0f} tokens per minute; "
                f"{max(0, math.floor(bucket.level))} are left and the request may use {tokens}. "
                f"It can be sent again in {_seconds(wait)}.",
                retry_after=wait,
            )
        bucket.level -= tokens
        self.reserved += tokens

    def release(self, used: int | None = None) -> None:
        """Give back what was not used. Idempotent.

        `used`: tokens computed and generated; None: it was refused before it started, so that the
        request itself does not count either.
        """
        if self.released:
            return
        self.released = True
        account = self._account
        account.running -= 1
        account.refill(self._clock.monotonic())
        if account.tokens is not None:
            # More than was reserved is owed: what others count is known at the end only.
            account.tokens.put_back(self.reserved - (used or 0))
        if used is None and account.requests is not None:
            account.requests.put_back(1.0)

    def windows(self) -> dict[str, Window]:
        """Return `requests` and `tokens`, as far as they are limited."""
        return _windows(self._account, self._clock.monotonic())


class RateLimiter:
    """Keeps the account of every key that is not as good as new. Belongs to the event loop."""

    def __init__(self, clock: Clock) -> None:
        """Only monotonic time is read."""
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._sweep_at = _SWEEP_FROM

    def __len__(self) -> int:
        """Count the keys that are remembered."""
        return len(self._accounts)

    def take(self, key: str, limits: RateLimits) -> Grant:
        """Let one request of `key` pass or raise `RateLimited`; never waits. Refusals cost nothing."""
        account = self.check(key, limits)
        if account.requests is not None:
            account.requests.level -= 1.0
        account.running += 1
        return Grant(account, self._clock)

    def check(self, key: str, limits: RateLimits) -> _Account:
        """Raise `RateLimited` where `take` would; takes nothing."""
        account = self._account(key, limits)
        most = limits.max_concurrent
        if most is not None and account.running >= most:
            raise RateLimited(
                f"This key may have {most} requests at once, and has {account.running}. "
                "Send this one when another has ended.",
                retry_after=_BUSY_RETRY,
            )
        bucket = account.requests
        if bucket is not None and (wait := bucket.wait(1.0)) > 0:
            raise RateLimited(
                f"This key may send {limits.requests_per_minute:g} requests per minute, "
                f"{bucket.capacity:g} at once. The next one can be sent in {_seconds(wait)}.",
                retry_after=wait,
            )
        return account

    def windows(self, key: str, limits: RateLimits) -> dict[str, Window]:
        """Return `requests` and `tokens` of a key, as far as they are limited."""
        return _windows(self._account(key, limits), self._clock.monotonic())

    def _account(self, key: str, limits: RateLimits) -> _Account:
        now = self._clock.monotonic()
        account = self._accounts.get(key)
        if account is None:
            self._sweep(now)
            account = _Account(limits, *_buckets(limits, now))
            self._accounts[key] = account
        elif account.limits != limits:
            _relimit(account, limits, now)
        account.refill(now)
        return account

    def _sweep(self, now: float) -> None:
        """Forget accounts that are as good as new; doubling keeps this cheap."""
        if len(self._accounts) < self._sweep_at:
            return
        for account in self._accounts.values():
            account.refill(now)
        self._accounts = {k: a for k, a in self._accounts.items() if not a.untouched}
        self._sweep_at = max(_SWEEP_FROM, 2 * len(self._accounts))


def rate_headers(windows: dict[str, Window]) -> dict[str, str]:
    """Return `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`."""
    headers: dict[str, str] = {}
    for name, window in windows.items():
        headers[f"x-ratelimit-limit-{name}"] = str(window.limit)
        headers[f"x-ratelimit-remaining-{name}"] = str(window.remaining)
        headers[f"x-ratelimit-reset-{name}"] = duration(window.reset)
    return headers


def duration(seconds: float) -> str:
    """Write seconds as OpenAI does: `0s`, `350ms`, `1s`, `6m0s`; never less than it is."""
    if seconds <= 0:
        return "0s"
    if seconds < 1:
        milliseconds = math.ceil(seconds * 1000 - _EPSILON)
        return "1s" if milliseconds >= 1000 else f"{milliseconds}ms"
    minutes, rest = divmod(math.ceil(seconds - _EPSILON), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


def _seconds(wait: float) -> str:
    return f"{math.ceil(wait * 10) / 10:g} s"


def _buckets(limits: RateLimits, now: float) -> tuple[Bucket | None, Bucket | None]:
    requests = tokens = None
    if limits.requests_per_minute is not None:
        per_second = limits.requests_per_minute / _MINUTE
        requests = Bucket(limits.request_capacity, per_second, now)
    if limits.tokens_per_minute is not None:
        tokens = Bucket(float(limits.tokens_per_minute), limits.tokens_per_minute / _MINUTE, now)
    return requests, tokens


def _relimit(account: _Account, limits: RateLimits, now: float) -> None:
    """Take new limits without giving away what was used under the old ones."""
    account.refill(now)
    before = (account.requests, account.tokens)
    account.limits = limits
    account.requests, account.tokens = _buckets(limits, now)
    for old, new in zip(before, (account.requests, account.tokens), strict=True):
        if old is not None and new is not None:
            new.level = min(new.capacity, new.capacity - (old.capacity - old.level))


def _windows(account: _Account, now: float) -> dict[str, Window]:
    account.refill(now)
    limits, windows = account.limits, {}
    if account.requests is not None and limits.requests_per_minute is not None:
        windows["requests"] = _window(account.requests, math.ceil(limits.requests_per_minute))
    if account.tokens is not None and limits.tokens_per_minute is not None:
        windows["tokens"] = _window(account.tokens, limits.tokens_per_minute)
    return windows


def _window(bucket: Bucket, limit: int) -> Window:
    left = math.floor(max(0.0, bucket.level) + _EPSILON * bucket.capacity)
    return Window(limit, left, (bucket.capacity - bucket.level) / bucket.per_second)
