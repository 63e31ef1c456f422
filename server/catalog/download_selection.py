"""Which file of which repository a reference means."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import replace

from server.catalog.download_choice import Chosen, QuantChooser, size_text
from server.catalog.download_progress import Progress
from server.catalog.hub_errors import HubError
from server.catalog.hub_files import (
    Candidate,
    Listing,
    candidates,
    every_candidate,
    is_whole_upload,
)
from server.catalog.library import Library
from server.catalog.references import ModelRef, nearest
from server.core.errors import ConfigError, ModelFileError, OnegpuError


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
            listing = self._listing(begun.repo, self._ref.revision)
            try:
                candidate = _by_file(listing, begun.file)
            except (ConfigError, ModelFileError):
                self._progress.say(
                    f"{begun.quant} was begun earlier, but {begun.repo} has it no more"
                )
            else:
                self._progress.say(f"going on with {begun.quant}, begun earlier")
                return listing, candidate
        return self._by_choice()

    def _by_name(self, ref: ModelRef) -> tuple[Listing, Candidate]:
        preferred = self._library.catalogue.locate(ref).repo
        repos = self._library.catalogue.repositories(ref)
        failure: OnegpuError | None = None
        for repo in sorted(repos, key=lambda each: each != preferred):
            try:
                listing = self._listing(repo, ref.revision)
                return listing, _named(listing, ref)
            except (ConfigError, ModelFileError) as error:
                failure = failure or error
            except HubError:
                # A mirror need not have the second choice; what the first one has is the news.
                if failure is None:
                    raise
        raise failure or ConfigError(f"{ref} names no repository.")

    def _by_choice(self) -> tuple[Listing, Candidate]:
        refused: Chosen | None = None
        by_name = self._ref
        for repo in self._library.catalogue.repositories(self._ref):
            try:
                listing = self._listing(repo, self._ref.revision)
            except HubError:
                if refused is None:
                    raise
                continue
            found = candidates(listing)
            chosen = self._chooser([c for c in found if is_whole_upload(c)] or found)
            if chosen.fits:
                self._progress.say(chosen.reason)
                return listing, chosen.candidate
            if refused is None:
                refused, by_name = chosen, exact_reference(self._ref, listing, chosen.candidate)
        if refused is None:
            raise ConfigError(f"{self._ref} names no repository.")
        raise ModelFileError(
            f"Nothing of {self._ref} fits: {refused.reason}. Name the quantization to get it all "
            f"the same: onegpu pull {shlex.quote(str(by_name))}"
        )


def exact_reference(ref: ModelRef, listing: Listing, candidate: Candidate) -> ModelRef:
    """Return the reference that means `candidate` and nothing else in `listing`.

    By its quantization where that is enough, else by its file.
    """
    if ref.file is not None:
        return ref
    same = [c for c in candidates(listing) if c.quant == candidate.quant]
    if len(same) == 1 and re.fullmatch(r"[A-Z0-9_.-]+", candidate.quant):
        return replace(ref, quant=candidate.quant)
    file = candidate.files[0].path
    name = f"hf:{listing.repo}/{file}"
    return ModelRef("hub", name, repo=listing.repo, file=file, revision=ref.revision)


def _named(listing: Listing, ref: ModelRef) -> Candidate:
    if ref.file is not None:
        return _by_file(listing, ref.file)
    found = candidates(listing)
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


def _by_file(listing: Listing, name: str) -> Candidate:
    found = every_candidate(listing)
    for candidate in found:
        if name in {file.path for file in candidate.files}:
            return candidate
    paths = [file.path for candidate in found for file in candidate.files]
    hint = nearest(name, paths) or f". It has {', '.join(paths)}"
    raise ConfigError(f"{listing.repo} has no file {name}{hint}")
