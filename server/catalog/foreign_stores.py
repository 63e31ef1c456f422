"""Weights that other programs have on this machine: Ollama's blobs and the hub client's cache. Read, never changed.

Ollama: `manifests/<registry>/<namespace>/<model>/<tag>` is a JSON document whose layer of type `…image.model` names a
file `blobs/sha256-<digest>`; it is renamed so only once its digest is verified. Hub cache:
`models--<owner>--<name>/snapshots/<commit>/<file>`, links to `blobs/<SHA-256>`; the client checks the size alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from server.catalog.gguf import read_header
from server.catalog.hub_files import Candidate, HubFile, Listing, candidates, check_parts
from server.core.errors import ModelFileError

_MODEL_LAYER = "application/vnd.ollama.image.model"
_REGISTRY = "registry.ollama.ai/library"
_HUB_REGISTRIES = ("hf.co", "huggingface.co")


@dataclass(frozen=True, slots=True)
class Foreign:
    """A model in another program's store."""

    name: str
    """`qwen3:32b` for Ollama's library, else `hf:owner/repo:QUANT`."""
    store: Literal["Ollama", "hub cache"]
    quant: str | None
    path: Path
    """The file to open; the first part of a split one."""
    files: tuple[Path, ...]
    size: int
    repo: str | None = None
    in_repository: tuple[str, ...] = ()
    """The files' paths in the repository, where they are known."""


def usual_ollama_folders() -> tuple[Path, ...]:
    """Return where Ollama keeps models when nobody says otherwise: a user's, and the service's."""
    return (Path.home() / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models"))


def usual_hub_cache() -> Path:
    """Return where the hub's client keeps its cache when nobody says otherwise."""
    return Path.home() / ".cache" / "huggingface" / "hub"


def ollama_models(folder: Path) -> Iterator[Foreign]:
    """Yield what Ollama holds under `folder` (`~/.ollama/models`); nothing for a missing one."""
    manifests = folder / "manifests"
    for path in sorted(_files_below(manifests)):
        parts = path.relative_to(manifests).parts
        if len(parts) == 4:
            found = _ollama_model(folder, path, "/".join(parts[:2]), parts[2], parts[3])
            if found is not None:
                yield found


def hub_cache_models(folder: Path) -> Iterator[Foreign]:
    """Yield the GGUFs in the hub client's cache (`~/.cache/huggingface/hub`), newest commit first."""
    for repository in sorted(folder.glob("models--*--*")):
        repo = "/".join(repository.name.split("--", 2)[1:])
        seen: set[str] = set()
        for snapshot in _snapshots(repository):
            for found in _snapshot_models(snapshot, repo):
                if found.name not in seen:
                    seen.add(found.name)
                    yield found


def is_whole(path: Path) -> bool:
    """Whether the file is a GGUF as long as its own tensor table says."""
    try:
        header = read_header(path)
    except ModelFileError:
        return False
    end = max((tensor.offset + tensor.n_bytes for tensor in header.tensors), default=0)
    return header.data_offset + end <= header.file_size


def _files_below(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.rglob("*") if path.is_file()]
    except OSError:  # another user's store
        return []


def _ollama_model(folder: Path, path: Path, registry: str, model: str, tag: str) -> Foreign | None:
    manifest = _json(path)
    layers = manifest.get("layers")
    models = [
        each
        for each in (layers if isinstance(layers, list) else [])
        if isinstance(each, dict) and each.get("mediaType") == _MODEL_LAYER
    ]
    if len(models) != 1:  # none, or parts that only Ollama puts together
        return None
    layer = models[0]
    blob = folder / "blobs" / str(layer.get("digest", "")).replace(":", "-")
    try:
        # Size as promised: Ollama itself may be writing the file just now.
        if blob.stat().st_size != layer.get("size"):
            return None
        blob.open("rb").close()
    except OSError:
        return None
    about = manifest.get("config")
    digest = about.get("digest", "") if isinstance(about, dict) else ""
    config = folder / "blobs" / str(digest).replace(":", "-")
    quant = str(_json(config).get("file_type") or "").upper() or None
    size = int(layer["size"])
    if registry == _REGISTRY:
        return Foreign(f"{model}:{tag}", "Ollama", quant, blob, (blob,), size)
    host, _, owner = registry.partition("/")
    repo = f"{owner}/{model}" if host in _HUB_REGISTRIES else None
    name = f"hf:{repo}:{quant or tag}" if repo else f"{registry}/{model}:{tag}"
    return Foreign(name, "Ollama", quant, blob, (blob,), size, repo)


def _json(path: Path) -> dict[str, Any]:
    """Read a small document; empty when it cannot be read or is something else."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _snapshots(repository: Path) -> list[Path]:
    """Return the commits of a cached repository: main's first, then the newest."""
    try:
        main = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        main = ""
    found = [path for path in (repository / "snapshots").glob("*") if path.is_dir()]
    return sorted(found, key=lambda path: (path.name != main, -path.stat().st_mtime))


def _snapshot_models(snapshot: Path, repo: str) -> Iterator[Foreign]:
    files = []
    for path in sorted(snapshot.rglob("*.gguf")):
        try:
            files.append(HubFile(path.relative_to(snapshot).as_posix(), path.stat().st_size, None))
        except OSError:  # a link to a blob that was removed
            continue
    if not files:
        return
    listed = list(_listed(Listing(repo, snapshot.name, tuple(files))))
    for candidate in listed:
        paths = tuple(snapshot / file.path for file in candidate.files)
        alone = sum(other.quant == candidate.quant for other in listed) == 1
        inside = tuple(file.path for file in candidate.files)
        name = f"hf:{repo}:{candidate.quant}" if alone else f"hf:{repo}/{inside[0]}"
        yield Foreign(
            name, "hub cache", candidate.quant, paths[0], paths, candidate.size, repo, inside
        )


def _listed(listing: Listing) -> Iterator[Candidate]:
    try:
        found = candidates(listing)
    except ModelFileError:  # projectors alone
        return
    for candidate in found:
        try:
            check_parts(candidate)
        except ModelFileError:
            continue
        yield candidate
