"""What the settings and Modelfiles ask to be served, name by name, with files instead of references."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from server.assembly.routes import standby_names
from server.catalog.address import parse_address
from server.catalog.modelfile import (
    Modelfile,
    find_modelfiles,
    read_modelfile,
    resolve,
    served_name,
)
from server.catalog.references import not_on_the_hub
from server.core.errors import ConfigError, OnegpuError
from server.settings import EngineSettings, ModelSettings, ServedModelSettings, Settings
from server.settings.messages import describe
from server.settings.relations import Conflicts

log = logging.getLogger(__name__)

_OF_WEIGHTS = ("n_gpu_layers", "n_cpu_moe", "adapter", "adapter_scale")

Fetch = Callable[[str], Path]
"""Finds a file by path, catalogue name, hub reference or, of an adapter, address; may download it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One served name: the weights, the context and what its agent adds."""

    name: str
    model: ModelSettings
    """With `path` and `adapter` as files."""
    engine: EngineSettings
    template: str | None
    """Jinja source that replaces the GGUF's own."""
    modelfile: Modelfile | None
    max_tokens: int | None
    """Output limit of a request that names none; None: the engine's default."""
    preload: bool
    keep_alive: float | None
    pin: bool = False
    """Its own prompt is computed ahead and kept."""

    @property
    def n_ctx(self) -> int | Literal["auto"]:
        """Most tokens of one request."""
        return self.engine.n_ctx


def wanted(settings: Settings, fetch: Fetch) -> list[Wanted]:
    """Return everything to serve, the primary model first. Raises `ConfigError`."""
    return _Reader(settings, fetch).read()


class _Reader:
    def __init__(self, settings: Settings, fetch: Fetch) -> None:
        self._settings = settings
        self._fetch = fetch
        folder = settings.modelfiles
        self._known: Mapping[str, Path] = {} if folder is None else find_modelfiles(folder)
        self._standby = dict.fromkeys(standby_names(settings)).keys()
        self._first: ModelSettings | None = None
        """The primary model."""

    def read(self) -> list[Wanted]:
        found = [self._primary()]
        self._first = found[0].model
        for name, entry in self._settings.models.items():
            with naming(f"models.{name}"):
                found.append(self._entry(name, entry))
        served = {one.name for one in found}
        if len(served) < len(found):
            raise ConfigError(
                f"models.{found[0].name}: the first model is served under this name already. "
                "Give one of them another: model.name."
            )
        for name, path in self._known.items():
            if name not in served:
                entry = ServedModelSettings.model_validate({"from": str(path)})
                found.append(self._entry(name, entry))
        for name in [one for one in self._standby if one not in {made.name for made in found}]:
            entry = ServedModelSettings.model_validate({"from": name})
            with naming("gateway.fallback"):
                found.append(self._entry(name, entry))
        return found

    def _primary(self) -> Wanted:
        settings = self._settings
        text = str(settings.model.path)
        modelfile = self._modelfile(text)
        written, chosen = settings.model.model_fields_set, settings.engine.model_fields_set
        said = {} if modelfile is None else _said(modelfile)
        # Whoever starts the server decides over the Modelfile that is started.
        over_model = {key: value for key, value in said.items() if key not in written}
        for key in {"adapter", "adapter_scale", "draft"} & written:
            over_model[key] = getattr(settings.model, key)
        over_engine = {key: value for key, value in said.items() if key not in chosen}
        template = _chat_template(settings)
        if template is None and modelfile is not None:
            template = modelfile.template
        return Wanted(
            name=settings.model.name or _name_of(text, modelfile),
            model=self._model(text, modelfile, over_model),
            engine=_engine(settings.engine, over_engine, f"{text}: engine"),
            template=template,
            modelfile=modelfile,
            max_tokens=None,
            preload=True,
            keep_alive=_keep_alive(settings.model.keep_alive, modelfile),
            pin=_pin(modelfile),
        )

    def _entry(self, name: str, entry: ServedModelSettings) -> Wanted:
        modelfile = self._modelfile(entry.from_)
        said = {} if modelfile is None else _said(modelfile)
        said |= {key: value for key, value in entry.model_dump().items() if value is not None}
        if name in self._standby:
            # What is to answer when the card is full must not need the card.
            said.setdefault("n_gpu_layers", 0)
        return Wanted(
            name=name,
            model=self._model(entry.from_, modelfile, said),
            engine=_engine(self._settings.engine, said, "engine"),
            template=None if modelfile is None else modelfile.template,
            modelfile=modelfile,
            max_tokens=entry.max_tokens,
            preload=entry.preload,
            keep_alive=_keep_alive(entry.keep_alive, modelfile),
            pin=_pin(modelfile, own=entry.pin),
        )

    def _model(
        self, text: str, modelfile: Modelfile | None, said: Mapping[str, Any]
    ) -> ModelSettings:
        """Return the settings of the weights: files found, layers as said."""
        base = self._settings.model
        adapter, scale = base.adapter, base.adapter_scale
        if modelfile is not None:
            adapter, scale = None, modelfile.adapter_scale
            if modelfile.adapter is not None and "adapter" not in said:
                adapter = self._adapter(modelfile.adapter, modelfile.adapter_place)
        elif text != str(base.path):
            adapter = None  # it was made for the primary model
        weights = text if modelfile is None else modelfile.base
        if parse_address(weights) is not None:
            raise not_on_the_hub(weights)
        path = self._fetch(weights)
        changes = {
            "path": path,
            "draft": self._draft(modelfile, said, path),
            "adapter": adapter,
            "adapter_scale": scale,
            **{key: said[key] for key in _OF_WEIGHTS if key in said},
        }
        return base.model_copy(update=changes)

    def _draft(
        self, modelfile: Modelfile | None, said: Mapping[str, Any], weights: Path
    ) -> Path | None:
        """Find the draft model: what the settings say, else the Modelfile, else the primary's of the same weights."""
        first = self._first
        if "draft" in said:
            with naming("draft"):
                return None if said["draft"] is None else self._fetch(str(said["draft"]))
        if modelfile is not None and modelfile.draft is not None:
            with naming(f"{modelfile.draft_place}: DRAFT"):
                return self._fetch(modelfile.draft)
        return first.draft if first and first.path.resolve() == weights.resolve() else None

    def _adapter(self, text: str, place: str) -> Path:
        """Find a Modelfile's adapter, and name the line that asks for it when there is none."""
        path = Path(text)
        with naming(f"{place}: ADAPTER"):
            if path.is_absolute() and not path.is_file():
                raise ConfigError(f"{path} does not exist. Give the path of a LoRA GGUF.")
            return self._fetch(text)

    def _modelfile(self, text: str) -> Modelfile | None:
        """Read the Modelfile that `text` means, with everything that it is built on."""
        found = self._read(text)
        if found is None:
            return None
        whole = resolve(found, self._read)
        for warning in whole.warnings:
            log.warning("%s", warning)
        return whole

    def _read(self, text: str) -> Modelfile | None:
        path = self._known.get(text, Path(text))
        if served_name(path) is None or path.is_dir():
            return None
        return read_modelfile(path)


def _said(modelfile: Modelfile) -> dict[str, Any]:
    """Return what a Modelfile says about the context, by the settings' names."""
    said = {"n_ctx": modelfile.n_ctx, "n_gpu_layers": modelfile.n_gpu_layers}
    return {key: value for key, value in said.items() if value is not None}


def _engine(base: EngineSettings, said: Mapping[str, Any], where: str) -> EngineSettings:
    """Return `base` with what is said otherwise. Raises `ConfigError` where that contradicts it."""
    changes = {key: said[key] for key in ("slots", "n_ctx", "kv_cells", "kv_type") if key in said}
    if not changes:
        return base
    try:
        return EngineSettings.model_validate({**base.model_dump(exclude_unset=True), **changes})
    except ValidationError as error:
        told = [text for details in error.errors(include_url=False) for text in _told(details)]
        raise ConfigError("\n".join(f"{where}: {text}" for text in told)) from error


def _told(details: ErrorDetails) -> list[str]:
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, Conflicts):
        return [f"{conflict.fields[0]} {conflict.message}" for conflict in cause.conflicts]
    return [describe(details)]


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Begin the message of an error with the entry that it is about."""
    try:
        yield
    except OnegpuError as error:
        error.message = f"{where}: {error.message}"
        error.args = (error.message,)
        raise


def _keep_alive(own: float | None, modelfile: Modelfile | None) -> float | None:
    if own is not None or modelfile is None or modelfile.keep_alive is None:
        return own
    return None if math.isinf(modelfile.keep_alive) else modelfile.keep_alive


def _pin(modelfile: Modelfile | None, *, own: bool | None = None) -> bool:
    """Raise `ConfigError` where there is nothing to pin."""
    asked = modelfile.pin if own is None and modelfile is not None else bool(own)
    words = modelfile is not None and (modelfile.system or modelfile.messages or modelfile.tools)
    if asked and not words:
        raise ConfigError(
            "pin keeps an agent's own prompt ready, and there is none: write SYSTEM, MESSAGE or TOOLS into a "
            "Modelfile, or take pin away."
        )
    return asked


def _name_of(text: str, modelfile: Modelfile | None) -> str:
    if modelfile is not None and modelfile.name is not None:
        return modelfile.name
    return Path(text).stem if Path(text).suffix.lower() == ".gguf" else text


def _chat_template(settings: Settings) -> str | None:
    """Read the template that replaces the GGUF's own. Raises `ConfigError`."""
    path = settings.model.chat_template
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"model.chat_template: cannot read {path}: {error}") from error
