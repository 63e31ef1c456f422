"""What goes wrong with the hub: which failures pass by themselves, and what to tell about the others."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx2
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from server.core.errors import OnegpuError

CLIENT_ERRORS = (HfHubHTTPError, httpx2.HTTPError, HFValidationError, OfflineModeIsEnabled)
"""Everything that the client raises on purpose."""

_ANSWERS = (HfHubHTTPError, httpx2.HTTPStatusError)
_PASSING = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
_PASSING_STATUS = (408, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 300.0
_FIRST_WAIT = 1.0


class HubError(OnegpuError):
    """The hub, or another server of files, cannot be reached, refuses, or has not what was asked for."""

    code = "hub_error"


class Backoff:
    """Waits between attempts: 1, 2, 4 … seconds, or as long as the hub asks for."""

    def __init__(
        self,
        attempts: int,
        *,
        sleep: Callable[[float], None],
        say: Callable[[str], None],
        explain: Callable[[Exception], HubError],
    ) -> None:
        """`attempts`: failures in a row without progress after which it gives up."""
        self._attempts = attempts
        self._sleep = sleep
        self._say = say
        self._explain = explain
        self._failures = 0

    def progress(self) -> None:
        """Count failures from zero again: something came."""
        self._failures = 0

    def after(self, error: Exception) -> None:
        """Wait before the next attempt.

        Raises `HubError` when `error` does not pass by itself, or has come too often.
        """
        asked = transient(error)
        self._failures += 1
        if asked is None or asked > _LONGEST_WAIT or self._failures >= self._attempts:
            raise self._explain(error) from error
        wait = max(asked, _FIRST_WAIT * 2 ** (self._failures - 1))
        self._say(f"{brief(error)}; trying again in {wait:.0f} s ({self._failures})")
        self._sleep(wait)


def transient(error: Exception) -> float | None:
    """Return the seconds that the hub asks to wait (0 when it does not say); None when waiting is no use."""
    if isinstance(error, _ANSWERS):
        if error.response.status_code not in _PASSING_STATUS:
            return None
        return float(_asked_to_wait(error) or 0)
    return 0.0 if isinstance(error, _PASSING) else None


def _asked_to_wait(error: HfHubHTTPError | httpx2.HTTPStatusError) -> int | None:
    """Return the seconds of `Retry-After`, or of the `RateLimit` that huggingface.co sends instead."""
    headers = error.response.headers
    asked = headers.get("retry-after", "")
    if asked.isascii() and asked.isdecimal():
        return int(asked)
    # "api";r=0;t=55: nothing is left for another 55 seconds.
    limit = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*([0-9]{1,9})", headers.get("ratelimit", ""))
    return int(limit[1]) if limit else None


def told(error: Exception, repo: str, endpoint: str, *, has_token: bool) -> HubError:
    """Make the error for people of one of `CLIENT_ERRORS`."""
    if isinstance(error, HfHubHTTPError):
        return HubError(_of_status(error, repo, endpoint, has_token=has_token))
    if isinstance(error, OfflineModeIsEnabled):
        return HubError("The hub is not asked: HF_HUB_OFFLINE is set.")
    if isinstance(error, HFValidationError):
        return HubError(f"{repo} is not a repository's name: {error}")
    return HubError(
        f"{endpoint} cannot be reached: {brief(error)}. Check the network, or name a mirror "
        "(hub.endpoint, --endpoint). What was downloaded is kept: the same command goes on."
    )


def _of_status(error: HfHubHTTPError, repo: str, endpoint: str, *, has_token: bool) -> str:
    status = error.response.status_code
    if isinstance(error, RepositoryNotFoundError | GatedRepoError):
        return _no_access(error, repo, endpoint, has_token=has_token)
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no such revision. Leave out @revision for its main branch."
    if isinstance(error, RemoteEntryNotFoundError):
        return f"{repo} has no such file any more: {error.response.url.path}."
    if status in (401, 403):
        return f"{endpoint} refuses the token for {repo} (status {status}). Check or renew it."
    if status == 429:
        wait = _asked_to_wait(error)
        when = " Try again later." if wait is None else f" Try again in {wait} s."
        return f"{endpoint} limits the rate of requests.{when} A token raises the limit."
    return f"{endpoint} answered {status} for {repo}. What was downloaded is kept; try again later."


def _no_access(error: HfHubHTTPError, repo: str, endpoint: str, *, has_token: bool) -> str:
    how = "Give a token (hub.token, HF_TOKEN or --token-file)."
    if isinstance(error, GatedRepoError):
        also = "This token's account has not done so." if has_token else how
        return f"{repo} is gated: accept its terms at {endpoint}/{repo} first. {also}"
    if has_token:
        return f"{endpoint} has no repository {repo}, or this token may not read it."
    return f"{endpoint} has no repository {repo}, or it is private. {how}"


def brief(error: Exception) -> str:
    """Return what went wrong in a few words, to stand within a sentence."""
    if isinstance(error, HfHubHTTPError):
        return f"the hub answered {error.response.status_code}"
    if isinstance(error, httpx2.HTTPStatusError):
        return f"the server answered {error.response.status_code}"
    if isinstance(error, httpx2.TimeoutException):
        return "the server fell silent"
    if isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError):
        return "the connection was cut"
    text = str(error).strip().rstrip(".")
    return f"{text[0].lower()}{text[1:]}" if text else type(error).__name__
