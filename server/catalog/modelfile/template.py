"""TEMPLATE: Go's syntax is converted to Jinja, Jinja is taken as it is."""

from __future__ import annotations

import re

import jinja2

from server.catalog.modelfile.go_conversion import convert
from server.catalog.modelfile.go_tree import GoTemplateError
from server.catalog.modelfile.syntax import Instruction, Source

_MARKS = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
"""They mark training targets; the renderer reads over them."""


def jinja_template(source: Source, line: Instruction) -> str | None:
    """Return Jinja source, None for an empty TEMPLATE: the model's own.

    Raises `ConfigError` with the place of what cannot be converted.
    """
    if not line.value.strip():
        return None
    if "{%" in line.value:
        return _checked(source, line)
    try:
        return convert(line.value)
    except GoTemplateError as error:
        message = (
            f"the TEMPLATE is not converted: {error.message} Leave TEMPLATE out to use the model's own, "
            "or write it in Jinja (with {% … %})."
        )
        raise source.fail(line.value_offset + error.offset, message) from error


def _checked(source: Source, line: Instruction) -> str:
    try:
        environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)
        environment.parse(_MARKS.sub("", line.value))
    except jinja2.TemplateSyntaxError as error:
        offset = line.value_offset + sum(
            len(each) for each in line.value.splitlines(keepends=True)[: error.lineno - 1]
        )
        message = f"the TEMPLATE is not valid Jinja: {error.message}."
        raise source.fail(offset, message) from error
    return line.value
