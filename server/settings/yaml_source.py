"""Reads the YAML file into plain values, each with the line it stands on.

YAML 1.2's scalars, not 1.1's: `on`, `off` and `yes` are text here (`flash_attention: on`), and
`1:30` is not ninety. Aliases, tags and duplicate keys are errors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from server.settings.problems import KeyPath, Problem

Lines = dict[KeyPath, int]
_WORDS: dict[str, object] = {"": None, "~": None, "null": None, "true": True, "false": False}
_INT = re.compile(r"[-+]?[0-9][0-9_]{0,30}")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*)?\.?[0-9]+([eE][-+]?[0-9]+)?")
_TAB = re.compile(r"^ *\t", re.MULTILINE)


class YamlFile:
    """One configuration file: `values` nested as written, `lines` by key path, `problems` found."""

    def __init__(self, path: Path) -> None:
        """Read `path`; mistakes are collected in `problems`, never raised."""
        self.path = path
        self.values: dict[str, Any] = {}
        self.lines: Lines = {}
        self.problems: list[Problem] = []
        text = self._read()
        if text is not None:
            self._parse(text)

    def where(self, path: KeyPath) -> str:
        """`file:line` of the setting, or of the nearest section around it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.path}:{self.lines[path[:end]]}"
        return str(self.path)

    def _read(self) -> str | None:
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            self._problem(None, "there is no such file; onegpu.example.yaml is one to copy")
        except IsADirectoryError:
            self._problem(None, "this is a directory, not a YAML file")
        except OSError as error:
            self._problem(None, f"cannot be read: {error.strerror}")
        else:
            try:
                return raw.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                line = raw.count(b"\n", 0, error.start) + 1
                self._problem(line, f"byte 0x{raw[error.start]:02x} is not UTF-8; save it as UTF-8")
        return None

    def _parse(self, text: str) -> None:
        tab = _TAB.search(text)
        if tab is not None:
            line = text.count("\n", 0, tab.end()) + 1
            self._problem(line, "a tab indents this line; YAML wants spaces")
            return
        try:
            root = _Loader(text).get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            reason = " ".join(part for part in (error.context, error.problem) if part)
            self._problem(mark.line + 1 if mark else None, f"not valid YAML: {reason}")
            return
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            self._problem(line, "not valid YAML: a control character that YAML does not allow")
            return
        if root is None or (isinstance(root, yaml.ScalarNode) and self._scalar(root) is None):
            return
        if not isinstance(root, yaml.MappingNode):
            line = root.start_mark.line + 1
            self._problem(line, "must be sections of `key: value` lines, such as `engine:`")
            return
        self.values = self._mapping(root, ())

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(line, "a key must be a plain word", path)
                continue
            key = str(key_node.value)
            inner = (*path, key)
            if key in values:
                first = self.lines[inner]
                self._problem(line, f"given twice; first on line {first}", inner)
                continue
            self.lines[inner] = line
            values[key] = self._value(value_node, inner)
        return values

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, path) for item in node.value]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        raise TypeError(f"unknown YAML node {node!r}")

    def _scalar(self, node: yaml.ScalarNode) -> object:
        text = str(node.value)
        if node.style is not None:
            return text
        word = text.lower()
        if word in _WORDS:
            return _WORDS[word]
        if _INT.fullmatch(text):
            return int(text.replace("_", ""))
        if _FLOAT.fullmatch(text):
            return float(text.replace("_", ""))
        return text

    def _problem(self, line: int | None, message: str, path: KeyPath = ()) -> None:
        where = str(self.path) if line is None else f"{self.path}:{line}"
        self.problems.append(Problem(where, path, message))


class _Loader(yaml.SafeLoader):
    """A composer that refuses what a configuration has no use for."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call] # the stubs lack it
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            # An alias may contain itself, or stand for exponentially much.
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not supported", problem_mark=mark
            )
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(
                problem=f"tags ({event.tag}) are not supported", problem_mark=mark
            )
        return super().compose_node(parent, index)
