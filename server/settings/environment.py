"""Settings from `ONEGPU_*` variables: `ONEGPU_ENGINE__SLOTS=8` is engine.slots."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from server.settings.fields import entry_type, find, leaves, nearest, section_type
from server.settings.problems import KeyPath, Problem

PREFIX = "ONEGPU_"
SEPARATOR = "__"
CONFIG_VARIABLE = "ONEGPU_CONFIG"
KEY_VARIABLE = "ONEGPU_KEY"
"""The key that commands present to a running server. A server's own keys are in its store."""
_NO_SETTINGS = (CONFIG_VARIABLE, KEY_VARIABLE)
_FOREIGN = {
    "HF_TOKEN": "token",
    "HF_ENDPOINT": "endpoint",
    "HF_HUB_CACHE": "cache",
    "HF_HOME": "cache",
    "OLLAMA_MODELS": "ollama",
    "HF_HUB_OFFLINE": "offline",
}
"""What others' tools call the keys of `hub`."""
# Kubernetes gives every pod such variables for a service that is named `onegpu`.
_SERVICE_LINK = re.compile(
    r"ONEGPU_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


def read_environment() -> Mapping[str, str]:
    """The process's environment: the one place where it is read."""
    return dict(os.environ)


def computing_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` for a process that loads a model: its C library asks for huge pages, as many systems want it to.

    Weights and caches are read all over, and each page of 4 KiB is looked up. A setting of somebody's own is kept.
    """
    name, tunable = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
    told = environ.get(name, "")
    if tunable in told:
        return dict(environ)
    return {**environ, name: ":".join(filter(None, (told, f"{tunable}=1")))}


def hub_fallbacks(environ: Mapping[str, str]) -> Iterator[tuple[KeyPath, str, object]]:
    """Path, variable and value of what the hub's own client and Ollama read from `environ`."""
    texts = {name: environ.get(name, "").strip() for name in _FOREIGN}
    for name, key in _FOREIGN.items():
        if name == "HF_HUB_OFFLINE":
            if texts[name].lower() in ("1", "true", "yes", "on"):
                yield ("hub", key), name, True
        elif name == "HF_HOME":
            if texts[name] and not texts["HF_HUB_CACHE"]:
                yield ("hub", key), name, f"{texts[name]}/hub"
        elif texts[name]:
            yield ("hub", key), name, texts[name]


def variable_name(path: KeyPath) -> str:
    """The variable that sets the setting at `path`."""
    return PREFIX + SEPARATOR.join(path).upper()


def overrides(
    model: type[BaseModel], environ: Mapping[str, str], problems: list[Problem]
) -> Iterator[tuple[KeyPath, str, str]]:
    """Path, variable and text of each setting in `environ`; mistakes are appended to `problems`."""
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in _NO_SETTINGS or _SERVICE_LINK.fullmatch(name):
            continue
        path = tuple(name.removeprefix(PREFIX).lower().split(SEPARATOR))
        field = find(model, path)
        if field is None or variable_name(path) != name:
            problems.append(Problem(name, (), "unknown variable" + _advice(model, name, path)))
        elif (inner := section_type(field)) is not None:
            keys = [variable_name((*path, leaf[0])) for leaf, _ in leaves(inner) if len(leaf) == 1]
            message = f"names a section; set its keys one by one: {', '.join(keys)}"
            problems.append(Problem(name, (), message))
        elif entry_type(field) is not None:
            problems.append(Problem(name, (), "maps names to sections; write it in the file"))
        else:
            yield path, name, environ[name]


def _advice(model: type[BaseModel], name: str, path: KeyPath) -> str:
    # One underscore where two belong (ONEGPU_ENGINE_SLOTS) is the most common mistake.
    flat = {variable_name(leaf).replace(SEPARATOR, "_"): leaf for leaf, _ in leaves(model)}
    meant = flat.get(name.upper().replace(SEPARATOR, "_")) or nearest(model, path)
    if meant is not None:
        return f"; did you mean {variable_name(meant)}?"
    return "; ONEGPU_ENGINE__SLOTS is how engine.slots is written"
