"""The model hub, through huggingface_hub: what a repository holds, and the bytes of a file from a place on.

The client gets its endpoint, token and name explicitly, and its telemetry is off. What it still reads by itself, at
import: HF_HUB_OFFLINE (every request then fails, which is told as such), HF_DEBUG, and the proxy variables that its
HTTP client honours. Xet is not used: its transfers have no order, so nothing of them could be continued. The plain way
serves the same files.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from huggingface_hub import HfApi, constants, get_session, hf_hub_url
from huggingface_hub.hf_api import RepoSibling

# Documented, but not marked as exported for type checkers.
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

from server import __version__
from server.catalog.bodies import Body, body_of, quiet_client, range_header, read_part
from server.catalog.hub_errors import CLIENT_ERRORS, Backoff, HubError, told
from server.catalog.hub_files import HubFile, Listing

DEFAULT_ENDPOINT = "https://huggingface.co"
_READ_ATTEMPTS = 3
_USER_AGENT = f"onegpu/{__version__}"
_UNSAFE = re.compile(r"(^|/)\.\.?(/|$)|^/|\\|[\x00-\x1f\x7f-\x9f]")
"""Names that lead out of a folder, or that a terminal would obey."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class HubOptions:
    """How to reach the hub."""

    endpoint: str | None = None
    """Address of the hub or of a mirror; None is huggingface.co."""
    token: str | None = None
    """For private and gated repositories; goes to the endpoint only, never to where it redirects."""
    offline: bool = False
    """Nothing is asked over the network."""
    timeout: float = 60.0
    """Seconds without a byte after which a connection counts as lost."""


class Hub:
    """Reads from the hub; keeps nothing.

    `listing` and `body` raise `HubError`, or an exception of the client's that `hub_errors.transient` knows; who calls
    them decides about retries.
    """

    def __init__(self, options: HubOptions, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Raise `HubError` under `offline`."""
        _silence_the_client()
        self._sleep = sleep
        if options.offline:
            raise HubError("The hub is not asked in offline mode (hub.offline, --offline).")
        self.endpoint = (options.endpoint or DEFAULT_ENDPOINT).rstrip("/")
        if not self.endpoint.startswith(("http://", "https://")):
            raise HubError(f"The hub's endpoint {self.endpoint} is not an http(s) address.")
        if options.token and not _TOKEN.fullmatch(options.token):
            # Before the HTTP client sees it: its error would show the token.
            raise HubError(
                "The hub's token has characters that no token has, such as spaces. Check hub.token, "
                "HF_TOKEN or --token-file."
            )
        self._timeout = options.timeout
        # False, not None: None would take HF_TOKEN or the token that a login left behind.
        self._token: str | bool = options.token or False
        # An own user agent: the client's tells the versions of other packages.
        self._headers = {"user-agent": _USER_AGENT, "accept-encoding": "identity"}
        self._api = HfApi(endpoint=self.endpoint, token=self._token, headers=dict(self._headers))

    @property
    def has_token(self) -> bool:
        """Whether a token is sent."""
        return bool(self._token)

    def listing(self, repo: str, revision: str | None = None) -> Listing:
        """Return the files of `repo` at the commit that `revision` names now.

        Raises `ValueError` for an answer that is not a hub's.
        """
        info = self._api.model_info(
            repo, revision=revision, files_metadata=True, timeout=self._timeout
        )
        files = []
        for entry in info.siblings or ():
            # A name from the network must not lead out of the models folder.
            if _UNSAFE.search(entry.rfilename):
                raise HubError(f"{repo} has a file with an unsafe name: {entry.rfilename!r}.")
            files.append(_file(entry))
        card = info.card_data
        name = card.get("license") if card is not None else None
        commit = info.sha or revision or "main"
        return Listing(repo, commit, tuple(files), name if isinstance(name, str) else None)

    @contextmanager
    def body(
        self, repo: str, commit: str, path: str, *, start: int = 0, end: int | None = None
    ) -> Iterator[Body]:
        """Open `path` from byte `start` up to `end` (not included; None: all).

        A server that ignores ranges gives a body whose `start` is 0.
        """
        headers = dict(self._headers)
        if self._token:
            # The HTTP client drops it when it is redirected to another origin.
            headers["authorization"] = f"Bearer {self._token}"
        headers |= range_header(start, end)
        url = hf_hub_url(repo, path, revision=commit, endpoint=self.endpoint)
        session = get_session()
        with session.stream("GET", url, headers=headers, timeout=self._timeout) as response:
            hf_raise_for_status(response)
            yield body_of(response)

    def read(
        self, repo: str, path: str, *, start: int, end: int, commit: str | None = None
    ) -> tuple[bytes, int | None]:
        """Return bytes `start` to `end` (not included) of a file, and the file's size.

        Retries a little. Raises `HubError`.
        """
        backoff = Backoff(
            _READ_ATTEMPTS,
            sleep=self._sleep,
            say=lambda _: None,
            explain=lambda error: told(error, repo, self.endpoint, has_token=self.has_token),
        )
        while True:
            try:
                return self._read(repo, commit or "main", path, start, end)
            except CLIENT_ERRORS as error:
                backoff.after(error)

    def _read(
        self, repo: str, commit: str, path: str, start: int, end: int
    ) -> tuple[bytes, int | None]:
        with self.body(repo, commit, path, start=start, end=end) as body:
            return read_part(body, path, start=start, end=end), body.total


def _file(entry: RepoSibling) -> HubFile:
    """Take what the hub says of a file. Raises `ValueError` for what cannot be."""
    size, sha256 = entry.size, None
    if entry.lfs is not None:
        size = entry.lfs.size if size is None else size
        sha256 = str(entry.lfs.sha256).lower()
        # It becomes part of a file's name.
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"{entry.rfilename} with SHA-256 {sha256[:80]!r}")
    if not isinstance(size, int) or size < (sha256 is not None):
        raise ValueError(f"{entry.rfilename} with a size of {size!r}")
    return HubFile(entry.rfilename, size, sha256)


def _silence_the_client() -> None:
    """Switch off what the client tells about this machine, and what it logs.

    The first has no parameter, only a variable that was read at import: without it the client asks the hub for a list
    of programs to look for in the environment. Its own
    logger writes to standard error whatever text the hub sends as a warning.
    """
    constants.HF_HUB_DISABLE_TELEMETRY = True
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    quiet_client()
