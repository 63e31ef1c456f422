"""The catalogue: short names, and which hub repositories have their weights.

Names are those that Ollama's users know. Sizes are of the publishers' files, rounded to three digits: what `onegpu
plan` and `onegpu pull` say without asking the hub. A pull always takes sizes and checksums from the hub itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from server.catalog.references import ModelRef, parse_reference
from server.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Source:
    """A hub repository, and the quantizations in it with their sizes in bytes."""

    repo: str
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """One model under its names."""

    name: str
    sources: tuple[Source, ...]
    """In order of preference: the vendor's repository first."""
    n_ctx_train: int
    """Context length in tokens, as the GGUF's header says (`context_length`)."""
    n_params: float
    license: str
    aliases: tuple[str, ...] = ()

    def source(self, quant: str | None) -> Source:
        """Return the repository that has `quant`; the first one for None and for unlisted ones."""
        for source in self.sources:
            if quant is not None and quant in source.sizes:
                return source
        return self.sources[0]


class Catalogue:
    """Models by name."""

    def __init__(self, models: tuple[CatalogueModel, ...]) -> None:
        """`models` have names and aliases that differ from each other."""
        self.models = models
        self._by_name = {n: model for model in models for n in (model.name, *model.aliases)}

    @property
    def names(self) -> frozenset[str]:
        """Every name and alias, in small letters."""
        return frozenset(self._by_name)

    def parse(self, text: str) -> ModelRef:
        """Understand `text` as `parse_reference` does. An alias becomes the model's name.

        Raises `ConfigError` with the nearest name.
        """
        ref = parse_reference(text, known=self.names)
        if ref.kind != "catalogue":
            return ref
        return ModelRef("catalogue", self._by_name[ref.text].name, quant=ref.quant)

    def model(self, ref: ModelRef) -> CatalogueModel:
        """Return the model of a catalogue reference. Raises `ConfigError` for an unknown one."""
        try:
            return self._by_name[ref.text]
        except KeyError:
            raise ConfigError(f"The catalogue has no model {ref.text}.") from None

    def locate(self, ref: ModelRef) -> ModelRef:
        """Return the hub reference behind a catalogue name; a hub reference is returned as it is."""
        if ref.kind != "catalogue":
            return ref
        source = self.model(ref).source(ref.quant)
        return ModelRef("hub", f"hf:{source.repo}", repo=source.repo, quant=ref.quant)

    def repositories(self, ref: ModelRef) -> tuple[str, ...]:
        """Return every repository that may hold `ref`'s weights."""
        if ref.kind == "catalogue":
            return tuple(source.repo for source in self.model(ref).sources)
        return (ref.repo,) if ref.repo else ()

    def name_of(self, repo: str) -> str | None:
        """Return the catalogue name of a repository's weights, None when it is not listed."""
        for model in self.models:
            if any(source.repo.lower() == repo.lower() for source in model.sources):
                return model.name
        return None
