"""`onegpu serve`: load a model and serve it until a signal ends the process."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from server.core.errors import ConfigError

if TYPE_CHECKING:
    from server.cli.parsing import Commands
    from server.settings import Override

_DESCRIPTION = """\
Load MODEL into this process and serve it at http://HOST:PORT/v1, OpenAI-compatible.

SLOTS requests run at once; further ones wait in line. One request may use up to N_CTX tokens,
prompt and output together. The KV cache has KV_CELLS places for one token each, taken once at
start: slots × n_ctx = kv_cells, unless --kv-cells says otherwise. Fewer cells save memory: then
long requests wait for each other, but nothing that runs ever fails for lack of them."""

_EPILOG = """\
A flag wins over the variable (ONEGPU_ENGINE__SLOTS=8 is engine.slots), the variable over the file
and the file over the default. onegpu.example.yaml has every setting; flags are for the common
ones.

examples:
  onegpu serve                                     the demo model, 4 slots of 4096 tokens
  onegpu serve Qwen3-32B-Q4_K_M.gguf --n-ctx 8192  4 × 8192 = 32768 cells
  onegpu serve m.gguf --slots 16 --kv-cells 32768  16 slots share the cells of 4 × 8192
  onegpu serve m.gguf --kv-type q8_0               a KV cache of about half the size
  onegpu serve --config onegpu.yaml --port 8080    the file, with another port

Ctrl-C or SIGTERM stops it: running requests are finished first; a second signal ends at once."""

# Flag, placeholder, setting, help: by group. The settings' own validation judges the values.
_GROUPS = {
    "what to serve": (
        ("--n-gpu-layers", "N", "model.n_gpu_layers", "layers on the GPU: a number, all, or auto"),
    ),
    "slots and KV cache": (
        ("--slots", "N", "engine.slots", "requests that run at once, 1 to 256"),
        ("--n-ctx", "TOKENS", "engine.n_ctx", "most tokens, prompt + output, of one request"),
        ("--kv-cells", "TOKENS", "engine.kv_cells", "size of the whole KV cache in tokens"),
        ("--kv-type", "TYPE", "engine.kv_type", "f16, q8_0 (about half), q4_0 (about a quarter)"),
    ),
    "network": (
        ("--host", "ADDRESS", "server.host", "address to listen on; 0.0.0.0: every interface"),
        ("--port", "PORT", "server.port", "port to listen on; 0 takes a free one"),
    ),
}
_DEFAULTS = {
    "model.n_gpu_layers": "auto",
    "engine.slots": "4",
    "engine.n_ctx": "4096",
    "engine.kv_cells": "slots × n_ctx",
    "engine.kv_type": "f16",
    "server.host": "127.0.0.1",
    "server.port": "8000",
}
_MODEL = "model.path"


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "serve",
        prog="onegpu serve",
        help="load a GGUF model and serve it",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run, parser=parser)
    for title, flags in _GROUPS.items():
        group = parser.add_argument_group(title)
        if title == "what to serve":
            group.add_argument(
                "model", nargs="?", metavar="MODEL", help="a GGUF file [models/demo.gguf]"
            )
            group.add_argument(
                "--config", type=Path, metavar="FILE", help="a YAML file with settings [none]"
            )
        for flag, metavar, setting, text in flags:
            group.add_argument(
                flag, dest=setting, metavar=metavar, help=f"{text} [{_DEFAULTS[setting]}]"
            )


def run(options: argparse.Namespace) -> int:
    """Serve until a signal. Raises ConfigError for wrong settings or a missing model file."""
    from server.settings import load

    loaded = load(options.config, flags=_overrides(options))
    _check_model_file(loaded.settings.model.path)

    from server.assembly import serve

    return serve(loaded.settings)


def _overrides(options: argparse.Namespace) -> list[Override]:
    from server.settings import Override

    given = [(_MODEL, "MODEL", options.model)]
    for flags in _GROUPS.values():
        given += [(setting, flag, getattr(options, setting)) for flag, _, setting, _ in flags]
    return [
        Override(tuple(setting.split(".")), name, text)
        for setting, name, text in given
        if text is not None
    ]


def _check_model_file(path: Path) -> None:
    """Say what to do about a model that is not there, before anything is loaded."""
    if path.is_file():
        return
    if path.is_dir():
        found = sorted(path.glob("*.gguf"))
        raise ConfigError(f"{path} is a directory; name the GGUF file.{_choices(found)}")
    folder = path.parent if path.parent.is_dir() else Path("models")
    found = sorted(folder.glob("*.gguf"))
    raise ConfigError(
        f"The model file {path} does not exist (looked in {Path.cwd()}).{_choices(found)}\n"
        "Give the path to a GGUF file: onegpu serve path/to/model.gguf"
    )


def _choices(found: list[Path]) -> str:
    return f" There is: {', '.join(str(path) for path in found[:5])}." if found else ""
