"""A LoRA adapter from an address that is not the hub's: nobody vouches for it but a checksum.

Its header is read first, so that nothing is downloaded that is no adapter. With a pin the file must have that
checksum. Without one it must be as long as announced; its checksum is kept and told, and what is here stays: another
file at that address is taken only by whoever removes this one or pins that one.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from server import __version__
from server.catalog.adapters import adapter_problem
from server.catalog.address import Address, is_loopback
from server.catalog.bodies import Body, body_of, quiet_client, range_header, read_part
from server.catalog.download_files import FilesDownload, Machine, Source
from server.catalog.download_lock import exclusive, lock_path
from server.catalog.download_progress import Progress, Silent
from server.catalog.download_transfer import Partial
from server.catalog.gguf import missing_bytes
from server.catalog.header_source import read_first
from server.catalog.hub_errors import CLIENT_ERRORS, Backoff, HubError, brief
from server.catalog.hub_files import HubFile
from server.catalog.library_entries import size_of
from server.catalog.library_manifest import Manifest, ManifestFile, manifest_path, read_manifest
from server.core.errors import ModelFileError

_ATTEMPTS = 3
_TIMEOUT = 60.0
_OURSELVES = "Download it yourself and give the file's path."


def pull_adapter(
    address: Address,
    models_dir: Path,
    *,
    progress: Progress | None = None,
    offline: bool = False,
    machine: Machine | None = None,
) -> Path:
    """Return the file of `address`, downloading it when it is not here.

    Raises `ModelFileError` for what is not a LoRA adapter or has a wrong checksum, `HubError` for everything about
    network, access, disk and offline mode.
    """
    puller = _Puller(address, models_dir, progress or Silent(), machine or Machine())
    if puller.is_there():
        return puller.target
    if offline:
        raise HubError(
            f"{address.name} is not on this machine, and offline mode forbids to get it."
        )
    try:
        with _client(address) as client:
            return puller.run(client)
    except OSError as error:
        what = error.filename or models_dir
        raise HubError(f"{what} cannot be written: {error.strerror or error}.") from error


@dataclass(frozen=True, slots=True)
class _Sent:
    body: Body
    version: str | None
    """What tells this file from later ones at its address; None where the server says nothing."""
    is_page: bool


class _Puller:
    def __init__(
        self, address: Address, models_dir: Path, progress: Progress, machine: Machine
    ) -> None:
        self.target = address.target(models_dir)
        self._address = address
        self._progress = progress
        self._machine = machine

    def is_there(self) -> bool:
        """Tell whether the file is here, as it was verified."""
        manifest = self._manifest()
        if manifest is None or not manifest.complete:
            return False
        if size_of(self.target) != manifest.files[0].size:
            return False
        self._progress.say(f"{self._address.name} is there: {self.target}")
        return True

    def run(self, client: httpx2.Client) -> Path:
        size, version = self._look(client)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(lock_path(self.target), waiting=self._waiting):
            if not self.is_there():
                self._download(client, size, version)
        return self.target

    def _look(self, client: httpx2.Client) -> tuple[int, str | None]:
        """Read the header; return the file's size and version. Raises `ModelFileError` for no adapter."""
        address, seen = self._address, _Seen()

        def fetch(_: str, start: int, end: int) -> tuple[bytes, int | None]:
            backoff = Backoff(
                _ATTEMPTS,
                sleep=self._machine.sleep,
                say=self._progress.say,
                explain=self._explain,
            )
            while True:
                try:
                    with _open(client, address, start, end) as sent:
                        seen.take(sent, address)
                        data = read_part(sent.body, address.name, start=start, end=end)
                except CLIENT_ERRORS as error:
                    backoff.after(error)
                else:
                    return data, sent.body.total

        header = read_first(fetch, f"{address.host}{address.path}")
        instead = "download it and use FROM with its path instead of ADAPTER"
        problem = adapter_problem(header, instead=instead)
        if problem is None and missing_bytes(header) > 0:
            problem = (
                f"{header.path} is cut short where it is served: {missing_bytes(header):,} bytes "
                "of its tensors are missing."
            )
        if problem is not None:
            raise ModelFileError(problem)
        return header.file_size, seen.version

    def _download(self, client: httpx2.Client, size: int, version: str | None) -> None:
        address, target = self._address, self.target
        earlier = self._manifest()
        first = earlier.files[0].sha256 if earlier else ""
        known = address.sha256 or first or None
        # Bytes of two versions must not meet in one file; what has no version is not continued.
        told = hashlib.sha256(version.encode()).hexdigest() if version else secrets.token_hex()
        file = HubFile(target.name, size, known)
        partial = Partial(target, file, None if known else told[:12])

        @contextmanager
        def open_from(_: HubFile, start: int) -> Iterator[Body]:
            continued = start if known or version else 0
            with _open(client, address, continued, None) as sent:
                if sent.body.total not in (None, size) or (not known and sent.version != version):
                    raise HubError(f"{address.name} changed while it was downloaded. Try again.")
                yield sent.body

        source = Source(
            owner=address.host,
            lists="the address pins" if address.sha256 else "its first download had",
            advice="If this file is meant, pin it: #sha256= and its checksum behind the address.",
            open=open_from,
            explain=self._explain,
        )
        manifest = Manifest(
            name=address.name,
            requested=address.name,
            repo=address.host,
            revision=version or "",
            quant="LoRA",
            license=None,
            files=(ManifestFile(target.name, size, known or ""),),
            pinned=address.sha256,
        )
        FilesDownload([partial], source, self._progress, self._machine).run(manifest)
        self._tell(partial.checksum, verified=known is not None)

    def _tell(self, checksum: str, *, verified: bool) -> None:
        if verified:
            self._progress.say(f"verified SHA-256 {checksum[:12]}: {self.target}")
            return
        self._progress.say(f"nobody gave a SHA-256 for it; it came as {checksum}: {self.target}")
        self._progress.say(
            "to have this very file wherever this Modelfile goes, pin it: "
            f"ADAPTER {self._address.name}#sha256={checksum}"
        )

    def _manifest(self) -> Manifest | None:
        try:
            manifest = read_manifest(manifest_path(self.target))
        except ModelFileError:
            return None  # a damaged note is written anew
        return manifest if manifest and manifest.files else None

    def _explain(self, error: Exception) -> HubError:
        name, host = self._address.name, self._address.host
        if isinstance(error, httpx2.HTTPStatusError):
            status = error.response.status_code
            if status in (401, 403):
                return HubError(
                    f"{host} refuses {name} (status {status}); it gets no token. {_OURSELVES}"
                )
            if status in (404, 410):
                return HubError(f"{host} has no {name} (status {status}). Check the address.")
            return HubError(
                f"{host} answered {status} for {name}. What was downloaded is kept; try again later."
            )
        return HubError(
            f"{host} cannot be reached: {brief(error)}. What was downloaded is kept: the same "
            "command goes on."
        )

    def _waiting(self) -> None:
        self._progress.say("another process is downloading this adapter; waiting for it")


class _Seen:
    """Holds all answers of one look against the first."""

    def __init__(self) -> None:
        self.version: str | None = None
        self._total: int | None = None

    def take(self, sent: _Sent, address: Address) -> None:
        """Raise `HubError` for a page, a file of unknown length, or another file than before."""
        if sent.is_page:
            raise ModelFileError(
                f"{address.name} is a web page, not a file: perhaps the page about the file, or one "
                "that asks to log in. Give the address that the download itself has."
            )
        if sent.body.total is None:
            raise HubError(
                f"{address.host} does not say how long {address.name} is, so a part could be taken "
                f"for all of it. {_OURSELVES}"
            )
        if self._total not in (None, sent.body.total) or (
            self._total is not None and self.version != sent.version
        ):
            raise HubError(f"{address.name} changed while it was read. Try again.")
        self.version, self._total = sent.version, sent.body.total


def _client(address: Address) -> httpx2.Client:
    quiet_client()

    def allow(request: httpx2.Request) -> None:
        """Follow redirects to https only; those of this machine itself on this machine too."""
        url = request.url
        own = url.scheme == "http" and is_loopback(url.host) and not address.secure
        if url.scheme != "https" and not own:
            raise HubError(
                f"{address.name} redirects to {url.scheme}://{url.host}, but only https is followed. "
                f"{_OURSELVES}"
            )

    return httpx2.Client(
        event_hooks={"request": [allow]},
        follow_redirects=True,
        timeout=_TIMEOUT,
        headers={"user-agent": f"onegpu/{__version__}", "accept-encoding": "identity"},
    )


@contextmanager
def _open(client: httpx2.Client, address: Address, start: int, end: int | None) -> Iterator[_Sent]:
    with client.stream("GET", address.url, headers=range_header(start, end)) as response:
        response.raise_for_status()
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        etag = response.headers.get("etag", "")
        # A weak one is the same for files that differ by some bytes.
        version = etag if etag and not etag.startswith("W/") else None
        version = version or response.headers.get("last-modified")
        yield _Sent(body_of(response), version, kind in ("text/html", "application/xhtml+xml"))
