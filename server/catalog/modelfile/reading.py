"""From a Modelfile's text to a `Modelfile`, from a folder to all of them, and from child to parent."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from server.catalog.modelfile.adapter import check_adapter
from server.catalog.modelfile.document import Modelfile
from server.catalog.modelfile.parameters import Parameters
from server.catalog.modelfile.syntax import Instruction, Source, decode, instructions
from server.catalog.modelfile.template import jinja_template
from server.catalog.modelfile.tools import read_tools, unique
from server.core.errors import ConfigError

MOST_BYTES = 2**20
"""Of a Modelfile; licences and templates are a hundredth of that."""
_ROLES = ("system", "user", "assistant")
_UNUSED = {
    "RENDERER": "names a part of Ollama's program; the chat template of the GGUF, or TEMPLATE, is used",
    "PARSER": "names a part of Ollama's program; answers are read by the model's own format",
    "REQUIRES": "names a version of Ollama; this server reads the file as it stands",
}
_REMOTE = re.compile(r"^(?:https?://|hf:|hf\.co/|huggingface\.co/)", re.IGNORECASE)
_FILE_NAME = re.compile(
    r"\.(?:gguf|bin|safetensors|modelfile)$|(?:^|/)Modelfile(?:\.|$)", re.IGNORECASE
)


def read_modelfile(path: Path) -> Modelfile:
    """Read a file. Raises `ConfigError` with file, line and column."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"The Modelfile {path} cannot be read: {error.strerror}.") from error
    if data.startswith(b"GGUF"):
        raise ConfigError(f"{path} is a GGUF, not a Modelfile: serve it as it is.")
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{path} is larger than {MOST_BYTES} bytes: that is no Modelfile.")
    text = decode(data, str(path))
    parsed = parse_modelfile(text, origin=str(path), folder=path.parent)
    return replace(parsed, name=served_name(path))


def parse_modelfile(text: str, *, origin: str, folder: Path | None = None) -> Modelfile:
    """Read `text`; `folder` is where its relative paths start, by default the working directory.

    Raises `ConfigError` with `origin`, line and column, that says what to do.
    """
    reading = _Reading(Source(text, origin), folder or Path())
    for line in instructions(reading.source):
        reading.take(line)
    return reading.result()


def served_name(path: Path) -> str | None:
    """Name that a Modelfile at `path` is served under; None when `path` is not named like one.

    `NAME.Modelfile`, `Modelfile.NAME`, or `NAME/Modelfile`, in any case.
    """
    head, _, tail = path.name.partition(".")
    if head.lower() == "modelfile":
        return tail or path.absolute().parent.name or None
    stem, dot, suffix = path.name.rpartition(".")
    return stem if dot and stem and suffix.lower() == "modelfile" else None


def find_modelfiles(folder: Path) -> dict[str, Path]:
    """Return name → path of all Modelfiles in `folder` and one level below, by name.

    What is hidden is left out: editors, file managers and checkouts keep copies there.
    Raises `ConfigError` when there is no such folder, or two of one name.
    """
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {folder} to look for Modelfiles in.")
    found: dict[str, Path] = {}
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        name = served_name(path) if path.is_file() and not hidden else None
        if name is None:
            continue
        if name in found:
            message = (
                f"{found[name]} and {path} would both be served as {name!r}. Rename one of them."
            )
            raise ConfigError(message)
        found[name] = path
    return found


def resolve(modelfile: Modelfile, load: Callable[[str], Modelfile | None]) -> Modelfile:
    """Follow FROM while it names another Modelfile; what the child says wins.

    `load` returns the Modelfile that a `base` means, None when it means weights. Raises
    `ConfigError` for a loop.
    """
    chain = [modelfile]
    while (parent := load(chain[-1].base)) is not None:
        places = [Path(link.origin).resolve() for link in chain]
        if (again := Path(parent.origin).resolve()) in places:
            loop = [link.origin for link in chain[places.index(again) :]]
            raise ConfigError(_loop([*loop, loop[0]], chain[-1]))
        chain.append(parent)
    resolved = chain.pop()
    while chain:
        resolved = _inherit(chain.pop(), resolved)
    return resolved


def _loop(names: list[str], last: Modelfile) -> str:
    if len(names) == 2:
        return (
            f"{last.origin}: FROM {last.base} means this file itself. Rename the file, or write the weights' "
            "path or hf:owner/repo."
        )
    return f"FROM goes round in a circle: {' → '.join(names)}. One of them must name weights."


def _inherit(child: Modelfile, parent: Modelfile) -> Modelfile:
    changes: dict[str, Any] = {name: getattr(child, name) for name in child.given}
    changes.pop("base", None)
    if "adapter" in child.given and "adapter_scale" not in child.given:
        changes["adapter_scale"] = child.adapter_scale
    if "sampling" in child.given:
        changes["sampling"] = {**parent.sampling, **child.sampling}
    warnings = tuple(dict.fromkeys((*parent.warnings, *child.warnings)))
    given = parent.given | child.given
    return replace(
        parent, name=child.name, origin=child.origin, warnings=warnings, given=given, **changes
    )


class _Reading:
    """Collects what one text says."""

    def __init__(self, source: Source, folder: Path) -> None:
        self.source = source
        self._folder = folder
        self._parameters = Parameters(source)
        self._fields: dict[str, Any] = {}
        self._first: dict[str, Instruction] = {}
        self._messages: list[Mapping[str, str]] = []
        self._license: list[str] = []
        self._tools: list[Mapping[str, Any]] = []
        self._warnings: list[str] = []

    def take(self, line: Instruction) -> None:
        """Read one instruction."""
        if line.name in _UNUSED:
            self._warn(line, f"{line.name} {line.value} has no effect: it {_UNUSED[line.name]}.")
            return
        match line.name:
            case "FROM":
                self._only_once(line)
                self._fields["base"] = self._weights(line)
            case "DRAFT":
                self._only_once(line)
                self._fields["draft"] = self._weights(line)
                self._fields["draft_place"] = self.source.place(line.value_offset)
            case "ADAPTER":
                self._only_once(line)
                self._adapter(line)
            case "SYSTEM" | "TEMPLATE":
                self._replaceable(line)
            case "PARAMETER":
                self._parameters.take(line)
            case "MESSAGE":
                self._message(line)
            case "LICENSE":
                self._license.append(line.value)
            case "TOOLS":
                self._tools += read_tools(self.source, line, self._folder)
                unique(self.source, line, self._tools)
        self._first.setdefault(line.name, line)

    def result(self) -> Modelfile:
        """Return what was read. Raises `ConfigError` when FROM is missing."""
        if "base" not in self._fields:
            message = "there is no FROM. Add one: FROM qwen3:32b, FROM ./model.gguf or FROM hf:owner/repo."
            raise self.source.fail(0, message)
        fields = self._fields | self._parameters.fields
        for name, value in (
            ("messages", tuple(self._messages)),
            ("license", tuple(self._license)),
            ("tools", tuple(self._tools)),
            ("stop", tuple(self._parameters.stop)),
            ("sampling", self._parameters.sampling),
        ):
            if value:
                fields[name] = value
        if "tools" not in fields and "TOOLS" in self._first:
            fields["tools"] = ()
        warnings = (*self._warnings, *self._parameters.warnings)
        origin = self.source.origin
        given = frozenset(fields)
        return Modelfile(name=None, origin=origin, warnings=warnings, given=given, **fields)

    def _warn(self, line: Instruction, message: str) -> None:
        self._warnings.append(f"{self.source.place(line.offset)}: {message}")

    def _only_once(self, line: Instruction) -> None:
        if line.name in self._first:
            earlier = self.source.place(self._first[line.name].offset)
            raise self.source.fail(
                line.offset, f"there is a second {line.name}; the first is at {earlier}."
            )

    def _replaceable(self, line: Instruction) -> None:
        if line.name in self._first:
            earlier = self.source.place(self._first[line.name].offset)
            self._warn(line, f"this {line.name} replaces the one at {earlier}.")
        if line.name == "SYSTEM":
            self._fields["system"] = line.value
        else:
            self._fields["template"] = jinja_template(self.source, line)

    def _message(self, line: Instruction) -> None:
        role = line.key.lower()
        if role not in _ROLES:
            message = f"a message's role is one of {', '.join(_ROLES)}, not {line.key!r}."
            raise self.source.fail(line.key_offset, message)
        self._messages.append({"role": role, "content": line.value})

    def _weights(self, line: Instruction) -> str:
        if not line.value:
            raise self.source.fail(
                line.value_offset, f"{line.name} needs the name or path of a model."
            )
        if re.search(r"\s#", line.value):
            raise self.source.fail(line.value_offset, "a comment must be on a line of its own.")
        if re.fullmatch(r"'.*'", line.value):
            message = f'only " is a quotation mark here. Write {line.name} {line.value[1:-1]}'
            raise self.source.fail(line.value_offset, message)
        base = self._located(line)
        if base != line.value and not _is_path(line.value):
            message = (
                f"{line.name} {line.value} means the file {base}, not a model of that name. "
                f"Write {line.name} ./{line.value}"
            )
            self._warn(line, f"{message} to say so.")
        if base.lower().endswith((".safetensors", ".pth", ".pt")):
            message = f"{line.value} is not a GGUF. Convert it, or look for a GGUF of this model."
            raise self.source.fail(line.value_offset, message)
        if not _REMOTE.match(base) and Path(base).is_dir() and _is_path(base):
            message = f"{line.value} is a directory. Name the GGUF file in it."
            raise self.source.fail(line.value_offset, message)
        return base

    def _adapter(self, line: Instruction) -> None:
        if not line.value:
            raise self.source.fail(
                line.value_offset, "ADAPTER needs the path or URL of a LoRA GGUF."
            )
        located = self._located(line)
        if not _REMOTE.match(located) and not _is_path(located):
            located = _absolute(self._folder / located)
        self._fields["adapter"] = located
        self._fields["adapter_place"] = self.source.place(line.value_offset)
        if warning := check_adapter(self.source, line, located):
            self._warnings.append(warning)

    def _located(self, line: Instruction) -> str:
        """Return a path from the Modelfile's folder as one from here; other references as they are."""
        text = line.value
        if _REMOTE.match(text):
            return text
        if text.startswith("~"):
            return str(Path(text).expanduser())
        path = self._folder / text
        if not (_is_path(text) or path.is_file()):
            return text
        if not path.exists() and not Path(text).is_absolute() and Path(text).exists():
            start = os.path.relpath(text, self._folder)
            message = f"{text} does not exist: paths start at the Modelfile's folder. Write {line.name} {start}"
            raise self.source.fail(line.value_offset, message)
        return _absolute(path)


def _is_path(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~")) or _FILE_NAME.search(text) is not None


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - a link keeps the name that it was asked for by
