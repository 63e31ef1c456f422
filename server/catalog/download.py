"""Pulling a model from the hub: what to take, and whether it is here already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from server.catalog.download_choice import QuantChooser
from server.catalog.download_files import FilesDownload, Machine, Source
from server.catalog.download_lock import exclusive, lock_path
from server.catalog.download_progress import Progress, Silent
from server.catalog.download_selection import Selector, exact_reference
from server.catalog.download_transfer import Partial
from server.catalog.hub import Hub, HubOptions
from server.catalog.hub_errors import CLIENT_ERRORS, Backoff, HubError, told
from server.catalog.hub_files import Candidate, Listing, check_parts
from server.catalog.library import Library
from server.catalog.library_entries import size_of
from server.catalog.library_manifest import (
    Manifest,
    ManifestFile,
    manifest_path,
    read_manifest,
)
from server.catalog.references import ModelRef, hub_hint
from server.core.errors import ConfigError, ModelFileError

_LISTING_ATTEMPTS = 3


def pull(
    ref: ModelRef,
    library: Library,
    *,
    quant_chooser: QuantChooser,
    progress: Progress | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    offline: bool = False,
    machine: Machine | None = None,
) -> Path:
    """Return the file of `ref`, downloading what is not on this machine yet.

    Raises `ConfigError` for a name, `ModelFileError` for a repository without such a model or a wrong checksum, and
    `HubError` for everything about network, access, disk and offline mode.
    """
    progress = progress or Silent()
    found = library.find_entry(ref)
    if found is not None:
        if ref.kind == "file":
            return found.path
        where = "" if found.ours else f" in {found.source}'s store, used in place"
        progress.say(f"{ref} is there{where}: {found.path}")
        return found.path
    if ref.kind == "file":
        raise ConfigError(
            f"The model file {ref.path} does not exist, and a path is not pulled.{hub_hint(ref)}"
        )
    if offline:
        raise HubError(f"{ref} is not on this machine, and offline mode forbids to get it.")
    options = HubOptions(endpoint=endpoint, token=token)
    puller = _Puller(ref, library, Hub(options), quant_chooser, progress, machine or Machine())
    try:
        return puller.run()
    except OSError as error:
        what = error.filename or library.models_dir
        raise HubError(f"{what} cannot be written: {error.strerror or error}.") from error


class _Puller:
    def __init__(
        self,
        ref: ModelRef,
        library: Library,
        hub: Hub,
        chooser: QuantChooser,
        progress: Progress,
        machine: Machine,
    ) -> None:
        self._ref = ref
        self._library = library
        self._hub = hub
        self._chooser = chooser
        self._progress = progress
        self._machine = machine

    def run(self) -> Path:
        selector = Selector(self._ref, self._library, self._listing, self._chooser, self._progress)
        listing, candidate = selector.select()
        check_parts(candidate)
        unnamed = [file.path for file in candidate.files if file.sha256 is None]
        if unnamed:
            raise ModelFileError(
                f"{listing.repo}: the hub gives no SHA-256 for {unnamed[0]}, so it could not be "
                "verified. Choose another repository."
            )
        # The quantization is known only now: it may be here under its full name.
        name = exact_reference(self._ref, listing, candidate)
        found = self._library.find_entry(name)
        if found is not None:
            self._progress.say(f"{found.name} is there ({found.source}): {found.path}")
            return found.path
        # A revision has a folder of its own, so that it takes no other's place.
        at = f"@{self._ref.revision}" if self._ref.revision else ""
        folder = self._library.models_dir / Path(*PurePosixPath(listing.repo + at).parts)
        targets = [folder / Path(*PurePosixPath(file.path).parts) for file in candidate.files]
        targets[0].parent.mkdir(parents=True, exist_ok=True)
        with exclusive(lock_path(targets[0]), waiting=self._waiting):
            if not self._complete(targets[0], candidate):
                self._download(str(name), listing, candidate, targets)
        return targets[0]

    def _listing(self, repo: str, revision: str | None) -> Listing:
        backoff = Backoff(
            _LISTING_ATTEMPTS,
            sleep=self._machine.sleep,
            say=self._progress.say,
            explain=self._explaining(repo),
        )
        while True:
            try:
                return self._hub.listing(repo, revision)
            except CLIENT_ERRORS as error:
                backoff.after(error)
            except (KeyError, TypeError, ValueError) as error:
                raise HubError(
                    f"{self._hub.endpoint} does not answer as a model hub does ({error}). "
                    "Check hub.endpoint."
                ) from error

    def _complete(self, first: Path, candidate: Candidate) -> bool:
        """Tell whether another process has just finished the same download."""
        try:
            manifest = read_manifest(manifest_path(first))
        except ModelFileError:
            return False  # a damaged note is written anew, and the file is hashed
        wanted = [(file.size, file.sha256) for file in candidate.files]
        if manifest is None or not manifest.complete:
            return False
        there = [(file.size, file.sha256) for file in manifest.files]
        sizes = [size_of(first.parent / file.name) for file in manifest.files]
        return there == wanted and sizes == [size for size, _ in wanted]

    def _download(
        self, name: str, listing: Listing, candidate: Candidate, targets: list[Path]
    ) -> None:
        partials = [Partial(t, f) for t, f in zip(targets, candidate.files, strict=True)]
        source = Source(
            owner="the hub",
            lists="the hub lists",
            advice="Try again, or another mirror.",
            open=lambda file, start: self._hub.body(
                listing.repo, listing.commit, file.path, start=start
            ),
            explain=self._explaining(listing.repo),
        )
        manifest = self._manifest(name, listing, candidate, targets)
        FilesDownload(partials, source, self._progress, self._machine).run(manifest)
        digests = ", ".join(partial.checksum[:12] for partial in partials)
        self._progress.say(f"verified SHA-256 {digests}: {targets[0]}")

    def _manifest(
        self, name: str, listing: Listing, candidate: Candidate, targets: list[Path]
    ) -> Manifest:
        folder = targets[0].parent
        return Manifest(
            name=name,
            requested=str(self._ref),
            repo=listing.repo,
            revision=listing.commit,
            quant=candidate.quant,
            license=listing.license,
            pinned=self._ref.revision,
            files=tuple(
                ManifestFile(str(target.relative_to(folder)), file.size, file.sha256 or "")
                for target, file in zip(targets, candidate.files, strict=True)
            ),
        )

    def _explaining(self, repo: str) -> Callable[[Exception], HubError]:
        def explain(error: Exception) -> HubError:
            return told(error, repo, self._hub.endpoint, has_token=self._hub.has_token)

        return explain

    def _waiting(self) -> None:
        self._progress.say("another process is downloading this model; waiting for it")
