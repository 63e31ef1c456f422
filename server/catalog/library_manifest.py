"""The note beside downloaded weights: where they are from, and what was verified when."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from server.core.errors import ModelFileError

SUFFIX = ".json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file as it was verified."""

    name: str
    """Relative to the manifest's folder."""
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One model in the models folder: `<first file>.json` beside its files."""

    name: str
    """What to call it: `qwen3:32b-q4_k_m` or `hf:owner/repo:Q4_K_M`."""
    requested: str
    """What it was pulled as: `qwen3:32b` when the quantization was chosen here."""
    repo: str
    revision: str
    """The commit."""
    quant: str
    license: str | None
    files: tuple[ManifestFile, ...]
    complete: bool = False
    """False while downloading: then nothing of it is served."""
    pinned: str | None = None
    """Branch, tag or commit that was asked for; None for the main branch of its day."""
    version: int = _VERSION


def manifest_path(first_file: Path) -> Path:
    """Return where the manifest of a model lies."""
    return first_file.with_name(first_file.name + SUFFIX)


def temporary_path(first_file: Path) -> Path:
    """Return where a manifest is written before it gets its name; who writes holds the model's lock."""
    return first_file.with_name(f".{first_file.name}{SUFFIX}.tmp")


def write_manifest(first_file: Path, manifest: Manifest) -> None:
    """Write it so that a reader sees the old one or the new one, never a part."""
    path = manifest_path(first_file)
    temporary = temporary_path(first_file)
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(asdict(manifest), file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def read_manifest(path: Path) -> Manifest | None:
    """Read one; None when there is none, or when it is not ours.

    Raises `ModelFileError` for one of ours that is damaged.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}. Pull the model again.") from error
    if not isinstance(document, dict) or document.get("version") != _VERSION:
        return None
    try:
        return _manifest(document)
    except (KeyError, TypeError) as error:
        raise ModelFileError(f"{path} is damaged ({error}). Pull the model again.") from error


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest(document: dict[str, Any]) -> Manifest:
    files = tuple(ManifestFile(f["name"], f["size"], f["sha256"]) for f in document["files"])
    for file in files:
        # `rm` deletes what stands here: never outside of the folder.
        if Path(file.name).name != file.name or file.name in ("", ".."):
            raise KeyError(file.name)
        if not isinstance(file.size, int):
            raise TypeError(f"a size of {file.size!r}")
    texts = [str(document[key]) for key in ("name", "requested", "repo", "revision", "quant")]
    name, requested, repo, revision, quant = texts
    return Manifest(
        name,
        requested,
        repo,
        revision,
        quant,
        document["license"],
        files,
        document["complete"],
        document.get("pinned"),
    )
