"""Settings from `ONEGPU_*` variables: `ONEGPU_ENGINE__SLOTS=8` is engine.slots."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from server.settings.fields import find, leaves, nearest, section_type
from server.settings.problems import KeyPath, Problem

PREFIX = "ONEGPU_"
SEPARATOR = "__"
CONFIG_VARIABLE = "ONEGPU_CONFIG"
# Kubernetes gives every pod such variables for a service that is named `onegpu`.
_SERVICE_LINK = re.compile(
    r"ONEGPU_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


def read_environment() -> Mapping[str, str]:
    """The process's environment: the one place where it is read."""
    return dict(os.environ)


def variable_name(path: KeyPath) -> str:
    """The variable that sets the setting at `path`."""
    return PREFIX + SEPARATOR.join(path).upper()


def overrides(
    model: type[BaseModel], environ: Mapping[str, str], problems: list[Problem]
) -> Iterator[tuple[KeyPath, str, str]]:
    """Path, variable and text of each setting in `environ`; mistakes are appended to `problems`."""
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name == CONFIG_VARIABLE or _SERVICE_LINK.fullmatch(name):
            continue
        path = tuple(name.removeprefix(PREFIX).lower().split(SEPARATOR))
        field = find(model, path)
        if field is None or variable_name(path) != name:
            problems.append(Problem(name, (), "unknown variable" + _advice(model, name, path)))
        elif section_type(field) is not None:
            keys = [
                variable_name((*path, leaf[-1])) for leaf, _ in leaves(model) if leaf[:-1] == path
            ]
            message = f"names a section; set its keys one by one: {', '.join(keys)}"
            problems.append(Problem(name, (), message))
        else:
            yield path, name, environ[name]


def _advice(model: type[BaseModel], name: str, path: KeyPath) -> str:
    # One underscore where two belong (ONEGPU_ENGINE_SLOTS) is the most common mistake.
    flat = {variable_name(leaf).replace(SEPARATOR, "_"): leaf for leaf, _ in leaves(model)}
    meant = flat.get(name.upper().replace(SEPARATOR, "_")) or nearest(model, path)
    if meant is not None:
        return f"; did you mean {variable_name(meant)}?"
    return "; ONEGPU_ENGINE__SLOTS is how engine.slots is written"
