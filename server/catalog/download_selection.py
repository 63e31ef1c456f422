"""Which file of which repository a reference means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from server.catalog.download_choice import Chosen, QuantChooser, size_text
from server.catalog.download_progress import Progress
from server.catalog.hub_files import Candidate, Listing, candidates
from server.catalog.library import Library
from server.catalog.references import ModelRef, nearest
from server.core.errors import ConfigError, ModelFileError


class Selector:
    """Goes through the repositories that may have a model."""

    def __init__(
        self,
        ref: ModelRef,
        library: Library,
        listing: Callable[[str, str | None], Listing],
        chooser: QuantChooser,
        progress: Progress,
    ) -> None:
        """`listing` reads a repository at a revision."""
        self._ref = ref
        self._library = library
        self._listing = listing
        self._chooser = chooser
        self._progress = progress

    def select(self) -> tuple[Listing, Candidate]:
        """Return what to download.

        Raises `ConfigError` for a quantization or file that is not there, `ModelFileError` when nothing fits.
        """
        if self._ref.quant is not None or self._ref.file is not None:
            return self._by_name(self._ref)
        begun = self._library.begun(self._ref)
        if begun is not None:
            # The chooser might choose otherwise today, and the bytes of yesterday were lost.
            self._progress.say(f"going on with {begun.quant}, begun earlier")
            return self._by_name(replace(self._ref, quant=begun.quant))
        return self._by_choice()

    def _by_name(self, ref: ModelRef) -> tuple[Listing, Candidate]:
        preferred = self._library.catalogue.locate(ref).repo
        repos = self._library.catalogue.repositories(ref)
        failure: ConfigError | None = None
        for repo in sorted(repos, key=lambda each: each != preferred):
            listing = self._listing(repo, ref.revision)
            try:
                return listing, _named(listing, ref)
            except ConfigError as error:
                failure = failure or error
        raise failure or ConfigError(f"{ref} names no repository.")

    def _by_choice(self) -> tuple[Listing, Candidate]:
        refused: Chosen | None = None
        for repo in self._library.catalogue.repositories(self._ref):
            listing = self._listing(repo, self._ref.revision)
            chosen = self._chooser(candidates(listing))
            if chosen.fits:
                self._progress.say(chosen.reason)
                return listing, chosen.candidate
            refused = refused or chosen
        if refused is None:
            raise ConfigError(f"{self._ref} names no repository.")
        by_name = replace(self._ref, quant=refused.candidate.quant)
        raise ModelFileError(
            f"Nothing of {self._ref} fits: {refused.reason}. Name the quantization to get it all "
            f"the same: onegpu pull {by_name}"
        )


def _named(listing: Listing, ref: ModelRef) -> Candidate:
    found = candidates(listing)
    if ref.file is not None:
        return _by_file(listing, found, ref.file)
    quant = ref.quant or ""
    by_quant = [candidate for candidate in found if candidate.quant == quant]
    # UD-Q4_K_XL may be asked for as Q4_K_XL.
    by_quant = by_quant or [c for c in found if c.quant.removeprefix("UD-") == quant]
    if len(by_quant) == 1:
        return by_quant[0]
    if by_quant:
        several = " or ".join(f"hf:{listing.repo}/{c.files[0].path}" for c in by_quant)
        raise ConfigError(f"{listing.repo} has several files of {quant}. Name one: {several}")
    there = ", ".join(f"{c.quant} ({size_text(c.size)})" for c in found)
    raise ConfigError(f"{listing.repo} has no {quant}. It has {there}.")


def _by_file(listing: Listing, found: list[Candidate], name: str) -> Candidate:
    for candidate in found:
        if name in {file.path for file in candidate.files}:
            return candidate
    paths = [file.path for candidate in found for file in candidate.files]
    hint = nearest(name, paths) or f". It has {', '.join(paths)}"
    raise ConfigError(f"{listing.repo} has no file {name}{hint}")
