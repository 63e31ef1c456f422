"""`onegpu show`: what a model's files say about it."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from server.cli.pull_options import add_library_flags, library_of, load_settings
from server.core.errors import ConfigError, ModelFileError

if TYPE_CHECKING:
    from server.catalog.gguf import GgufHeader
    from server.catalog.library import Library
    from server.catalog.library_entries import Entry
    from server.cli.parsing import Commands

_DESCRIPTION = """\
Show what NAME's header says: architecture, parameters, context length, quantization, tensor
types, chat template, license; its files and their checksums. NAME is as `onegpu list` shows it,
or a path. --verify reads the files and compares them with the checksums."""


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "show", prog="onegpu show", help="show what a model is", description=_DESCRIPTION
    )
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("name", metavar="NAME", help="which model")
    parser.add_argument("--verify", action="store_true", help="read the files, check SHA-256")
    parser.add_argument("--json", action="store_true", help="as JSON, sizes in bytes")
    add_library_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Print the description. Raises ConfigError or ModelFileError."""
    from server.cli.pull_choice import plan_line

    settings = load_settings(options)
    entry = _entry(options.name, library_of(settings))
    described = describe(entry)
    described.facts["plan"] = plan_line(entry.files, settings)
    checks = _verify(entry) if options.verify else {}
    if options.json:
        document = {**described.facts, "tensor_types": described.types, "files": described.files}
        print(json.dumps({**document, "verified": checks} if checks else document, indent=1))
    else:
        _print(entry, described, checks)
    return 0 if all(checks.values()) else 1


@dataclass(frozen=True, slots=True)
class Description:
    """What `show` tells."""

    facts: dict[str, object]
    types: dict[str, int]
    """Tensor type → bytes of all tensors of it."""
    files: list[dict[str, object]]


def describe(entry: Entry) -> Description:
    """Read the headers of an entry's files. Raises `ModelFileError`."""
    from server.catalog.gguf import read_header

    if entry.problem is not None:
        raise ModelFileError(f"{entry.name}: {entry.problem}")
    headers = [read_header(path) for path in entry.files]
    first = headers[0]
    tensors = [tensor for header in headers for tensor in header.tensors]
    types: Counter[str] = Counter()
    for tensor in tensors:
        types[tensor.type_name] += tensor.n_bytes
    manifest = entry.manifest
    facts: dict[str, object] = {
        "name": entry.name,
        "architecture": first.architecture,
        "model": _text(first, "general.name"),
        "parameters": sum(math.prod(tensor.dimensions) for tensor in tensors),
        "layers": first.integer("block_count"),
        "context": first.integer("context_length"),
        "vocabulary": first.array_length("tokenizer.ggml.tokens"),
        "quantization": entry.quant or types.most_common(1)[0][0] if types else None,
        "chat_template": "tokenizer.chat_template" in first.metadata,
        "license": (manifest.license if manifest else None) or _text(first, "general.license"),
        "size": entry.size,
        "source": entry.source,
        "repository": manifest.repo if manifest else None,
        "revision": manifest.revision if manifest else None,
    }
    return Description(facts, dict(types.most_common()), _files(entry))


def _files(entry: Entry) -> list[dict[str, object]]:
    sums = {f.name: f.sha256 for f in entry.manifest.files} if entry.manifest else {}
    return [
        {"path": str(path), "size": path.stat().st_size, "sha256": sums.get(path.name)}
        for path in entry.files
    ]


def _entry(name: str, library: Library) -> Entry:
    found = library.named(name)
    if not found and (name.endswith(".gguf") or Path(name).is_file()):
        entry = library.find_entry(library.catalogue.parse(name))
        found = [entry] if entry is not None else []
    if not found:
        raise ConfigError(
            f"There is no {name} here. `onegpu list` shows what is, and "
            f"`onegpu pull {name}` may get it."
        )
    if len(found) > 1 and len({entry.path for entry in found}) > 1:
        all_names = ", ".join(f"{entry.name} ({entry.source})" for entry in found)
        raise ConfigError(f"{name} may be any of {all_names}. Name one, or give a path.")
    return found[0]


def _print(entry: Entry, described: Description, checks: dict[str, bool]) -> None:
    from server.catalog.download_choice import size_text

    facts = dict(described.facts)
    facts["parameters"] = _count(described.facts["parameters"])
    facts["chat_template"] = "yes" if facts["chat_template"] else "none"
    facts["size"] = size_text(entry.size)
    for name, value in facts.items():
        if value not in (None, "", 0):
            print(f"{name.replace('_', ' '):<15}{value}")
    total = max(sum(described.types.values()), 1)
    parts = [f"{name} {100 * size / total:.1f} %" for name, size in described.types.items()]
    print(f"{'tensors':<15}{', '.join(parts)}")
    for file in described.files:
        print(f"{'file':<15}{file['path']}")
        if file["sha256"]:
            sound = checks.get(str(file["path"]))
            state = "" if sound is None else ", verified now" if sound else ", NOT what is there"
            print(f"{'sha256':<15}{file['sha256']}{state}")


def _verify(entry: Entry) -> dict[str, bool]:
    """Hash the files; path → whether the checksum is the recorded one."""
    from server.catalog.download_transfer import sha256_of
    from server.cli.pull_progress import StreamProgress

    if entry.manifest is None:
        raise ConfigError(f"{entry.name} was not pulled by onegpu: no checksum is recorded.")
    progress = StreamProgress(sys.stderr)
    progress.begin("reading", total=entry.size, done=0)
    try:
        return {
            str(path): sha256_of(path, progress) == file.sha256
            for path, file in zip(entry.files, entry.manifest.files, strict=True)
        }
    finally:
        progress.end()


def _text(header: GgufHeader, key: str) -> str | None:
    value = header.metadata.get(key)
    return value if isinstance(value, str) else None


def _count(value: object) -> str:
    count = value if isinstance(value, int) else 0
    for unit, factor in (("B", 10**9), ("M", 10**6)):
        if count >= factor:
            return f"{count / factor:.3g}{unit}"
    return str(count)
