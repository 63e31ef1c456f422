"""The sandbox that chat templates run in: what transformers gives them, and nothing more."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.utils
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from server.chat.guard import PRIVATE
from server.core.errors import ModelFileError

LONGEST = 1 << 26
"""Characters of a rendered prompt, at most: far beyond any context, and bounded in memory."""

_TO_ESCAPE = re.compile(f"[^\x00-\x7f{PRIVATE}]")


MOST_STEPS = 2_000_000
"""Looks into messages and tools while a prompt is rendered, at most: some seconds. Templates that go
through all messages for each message would otherwise hold a thread for hours."""


class TooMuchError(Exception):
    """The text is longer than `LONGEST`, or rendering it takes more than `MOST_STEPS`; says which."""


class CompiledTemplate:
    """A template and the names that it looks for. For any thread."""

    def __init__(self, source: str, now: Callable[[], datetime]) -> None:
        """Compile `source`. Raises `ModelFileError` when it is not a valid template."""
        self._environment = environment = _Environment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            autoescape=False,
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: now().strftime(form),
            "dict": _Dict(),
            "namespace": _Namespace,
        }
        try:
            self._template = environment.from_string(source)
            self.variables = frozenset(meta.find_undeclared_variables(environment.parse(source)))
        except Exception as error:
            # Deep nesting fails in Jinja's parser or in Python's compiler, with errors of their own.
            raise ModelFileError(f"The model's chat template does not compile: {error}") from error

    def render(self, names: dict[str, Any]) -> str:
        """Return the text. Raises whatever templates raise, and `TooMuchError`."""
        self._environment.steps.left = MOST_STEPS
        return _join(self._template.generate(names))


class _Steps(threading.local):
    """What each thread may still do in the render that it is at."""

    left = 0


class _Environment(ImmutableSandboxedEnvironment):
    """Counts what templates do."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steps = _Steps()

    def getattr(self, obj: Any, attribute: str) -> Any:
        self._step()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self._step()
        return super().getitem(obj, argument)

    def _step(self) -> None:
        self.steps.left -= 1
        if self.steps.left < 0:
            message = "the template goes through the messages too many times"
            raise TooMuchError(message)


class _Generation(Extension):
    """`{% generation %}` marks training targets; for serving it is transparent."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares a plain set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the body as it stands."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Dict:
    """`dict` for templates: the type itself would hand out methods that change what is immutable."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` for templates, without names that reach into Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a name of the template
        self, *rest = args
        for name in (attributes := dict(*rest, **kwargs)):
            _refuse_internal(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_internal(name)
        super().__setitem__(name, value)


def _refuse_internal(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the name {name!r}")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - transformers' order
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """Like transformers' filter. Placeholders of the guard are never escaped: they must survive."""
    encoder = json.JSONEncoder(
        ensure_ascii=False,
        allow_nan=False,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    if indent is None:
        text = encoder.encode(value)
    else:
        # Indentation multiplies what is nested deep.
        text = _join(encoder.iterencode(value))
    return _TO_ESCAPE.sub(lambda char: json.dumps(char[0])[1:-1], text) if ensure_ascii else text


def _join(pieces: Iterable[str]) -> str:
    kept: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > LONGEST:
            message = f"the prompt is longer than {LONGEST:,} characters"
            raise TooMuchError(message)
        kept.append(piece)
    return "".join(kept)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
