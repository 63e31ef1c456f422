"""A profile: what was found to suit one model on one machine, in a file that people can read.

`DATA_DIR/tuned/NAME-SAMPLE-SLOTSxN_CTX-KV_TYPE.yaml`. It holds for the same model, machine, library version
and context sizes only. Deleting the file forgets it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from server.assembly.sizing import Sized
from server.catalog.file_sample import file_sample
from server.catalog.gguf_split import part_paths
from server.catalog.plan import Memory
from server.core.errors import OnegpuError
from server.ops.machine import cpu_name
from server.settings.machine import logical_cpus, physical_cores

TUNABLE = (
    "engine.threads",
    "engine.threads_batch",
    "engine.n_ubatch",
    "engine.max_prefill_rows",
    "engine.max_prefill_rows_decoding",
    "engine.kv_layout",
    "engine.flash_attention",
    "model.n_gpu_layers",
    "model.extra_buffers",
)
"""What a profile may set."""
_LIBRARY = "llama-cpp-python"
_HEAD = """\
# Written by `onegpu tune`. `onegpu serve` takes `settings` for this model where all of `holds_for` is so,
# and leaves alone what the configuration sets itself. Delete this file to forget it.
"""


@dataclass(frozen=True, slots=True)
class HoldsFor:
    """Where a profile applies. All texts and numbers are compared as they are."""

    model: str
    """A hash of size and both ends of its files."""
    machine: str
    library: str
    context: str


@dataclass(frozen=True, slots=True)
class Profile:
    """Settings, and what they were measured to bring."""

    name: str
    """The model's file, for people."""
    holds_for: HoldsFor
    settings: Mapping[str, Any]
    measured: Mapping[str, Any] = field(default_factory=dict)
    """For people; nothing reads it."""


def holds_for(sized: Sized, memory: Memory) -> HoldsFor:
    """Describe a context of this machine."""
    sizes = sized.sizes
    return HoldsFor(
        model=_sample(sized.group.model.path),
        machine=machine(memory),
        library=f"{_LIBRARY} {metadata.version(_LIBRARY)}",
        context=f"{sizes.slots}x{sizes.n_ctx}, {sizes.kv_cells} cells, {sizes.kv_type}",
    )


def machine(memory: Memory) -> str:
    """Return what tells machines apart: CPU, how much of it this process may use, card."""
    cores, cpus = physical_cores(), logical_cpus()
    card = memory.gpu_name or "a card" if memory.has_gpu else "no card"
    return f"{cpu_name()}, {cores} cores, {cpus} threads, {card}"


def profile_path(folder: Path, sized: Sized, what: HoldsFor) -> Path:
    """Return where the profile of a context lies."""
    sizes = sized.sizes
    size = f"{sizes.slots}x{sizes.n_ctx}"
    name = f"{sized.group.model.path.stem}-{what.model[:8]}-{size}-{sizes.kv_type}.yaml"
    return folder / name


def write_profile(path: Path, profile: Profile) -> None:
    """Write it so that a reader sees the old one or the new one. Raises `OnegpuError`."""
    text = _HEAD + yaml.safe_dump(asdict(profile), sort_keys=False, allow_unicode=True)
    passing = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        passing.write_text(text, encoding="utf-8")
        passing.replace(path)
    except OSError as error:
        passing.unlink(missing_ok=True)
        raise OnegpuError(f"The profile cannot be written to {path}: {error.strerror}.") from error


def read_profile(path: Path) -> Profile:
    """Read one. Raises `ValueError` with what is wrong."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        profile = Profile(**{**document, "holds_for": HoldsFor(**document["holds_for"])})
        unknown = sorted(set(profile.settings) - set(TUNABLE))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError) as error:
        raise ValueError(f"it cannot be read: {error}") from error
    if unknown:
        raise ValueError(f"it sets what is not tuned: {', '.join(unknown)}")
    return profile


def _sample(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in part_paths(path):
        digest.update(file_sample(part))
    return digest.hexdigest()
