"""`onegpu serve`: load a model and serve it until a signal ends the process."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from server.core.errors import ConfigError

if TYPE_CHECKING:
    from server.cli.parsing import Commands
    from server.settings import Override, Settings

_DESCRIPTION = """\
Load MODEL into this process and serve it at http://HOST:PORT/v1, OpenAI-compatible.

MODEL is a GGUF file, a name of the catalogue (`onegpu pull --list`) or hf:owner/repo[:quant], which
is downloaded if it is not here yet, or a Modelfile. The configuration file may name further models.

SLOTS requests run at once; further ones wait in line. One request may use up to N_CTX tokens,
prompt and output together. The KV cache has KV_CELLS places for one token each, taken once at
start: slots × n_ctx = kv_cells, unless --kv-cells says otherwise. Fewer cells save memory: then
long requests wait for each other, but nothing that runs ever fails for lack of them. `auto` leaves a
size to the planner; what cannot fit into memory is refused at once, with what would."""

_EPILOG = """\
A flag wins over the variable (ONEGPU_ENGINE__SLOTS=8 is engine.slots), the variable over the file
and the file over the default. onegpu.example.yaml has every setting; flags are for the common
ones.

examples:
  onegpu serve                                     the demo model, 4 slots of 4096 tokens
  onegpu serve qwen3:32b --slots auto --n-ctx auto  pulled if need be; as much as the card holds
  onegpu serve modelfiles/TechDocAssistant.Modelfile  an agent
  onegpu serve Qwen3-32B-Q4_K_M.gguf --n-ctx 8192  4 × 8192 = 32768 cells
  onegpu serve m.gguf --slots 16 --kv-cells 32768  16 slots share the cells of 4 × 8192
  onegpu serve m.gguf --kv-type q8_0               a KV cache of about half the size
  onegpu serve qwen3:32b --draft qwen3:0.6b        faster where the small one foresees the large one
  onegpu serve --config onegpu.yaml --port 8080    the file, with another port

Ctrl-C or SIGTERM stops it: running requests are finished first; a second signal ends at once.
SIGHUP reads the configuration again, as far as no model has to be loaded for it."""

# Flag, placeholder, setting, help: by group. The settings' own validation judges the values.
_GROUPS = {
    "what to serve": (
        ("--n-gpu-layers", "N", "model.n_gpu_layers", "layers on the GPU: a number, all, or auto"),
        ("--n-cpu-moe", "N", "model.n_cpu_moe", "layers whose experts stay in RAM, or auto"),
        ("--adapter", "FILE", "model.adapter", "a LoRA adapter's GGUF, made for this model"),
        ("--draft", "MODEL", "model.draft", "a small model of this family, which foresees tokens"),
    ),
    "slots and KV cache": (
        ("--slots", "N", "engine.slots", "requests that run at once, 1 to 256, or auto"),
        (
            "--n-ctx",
            "TOKENS",
            "engine.n_ctx",
            "most tokens, prompt + output, of one request, or auto",
        ),
        (
            "--kv-cells",
            "TOKENS",
            "engine.kv_cells",
            "size of the whole KV cache in tokens, or auto",
        ),
        (
            "--kv-layout",
            "LAYOUT",
            "engine.kv_layout",
            "auto, unified (one pool) or split (one each)",
        ),
        ("--kv-type", "TYPE", "engine.kv_type", "f16, q8_0 (half), q4_0 (a quarter), auto"),
    ),
    "network and keys": (
        ("--host", "ADDRESS", "server.host", "address to listen on; 0.0.0.0: every interface"),
        ("--port", "PORT", "server.port", "port to listen on; 0 takes a free one"),
        ("--data-dir", "DIR", "data_dir", "where API keys are kept"),
    ),
}
_DEFAULTS = {
    "model.n_gpu_layers": "auto",
    "model.n_cpu_moe": "0",
    "model.adapter": "none",
    "model.draft": "none",
    "engine.slots": "4",
    "engine.n_ctx": "4096",
    "engine.kv_cells": "slots × n_ctx",
    "engine.kv_layout": "auto",
    "engine.kv_type": "f16",
    "server.host": "127.0.0.1",
    "server.port": "8000",
    "data_dir": "~/.local/share/onegpu",
}
_MODEL = "model.path"
_HUB = ("hf:", "hf.co/", "huggingface.co/", "https:", "http:")


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
    # For the process that this command starts for itself: descriptors that it inherits.
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    for title, flags in _GROUPS.items():
        group = parser.add_argument_group(title)
        if title == "what to serve":
            group.add_argument(
                "model", nargs="?", metavar="MODEL", help="what to serve [models/demo.gguf]"
            )
            group.add_argument(
                "--config", type=Path, metavar="FILE", help="a YAML file with settings [none]"
            )
            group.add_argument(
                "--allow-cpu", action="store_true", help="use no GPU, though there may be one"
            )
        for flag, metavar, setting, text in flags:
            group.add_argument(
                flag, dest=setting, metavar=metavar, help=f"{text} [{_DEFAULTS[setting]}]"
            )


def run(options: argparse.Namespace) -> int:
    """Serve until a signal. Raises ConfigError for wrong settings or a missing model file."""
    from server.cli.supervised import inherit, settings_of, supervise
    from server.settings import load

    inherited = inherit(options.worker)

    def read() -> Settings:
        return load(options.config, flags=_overrides(options)).settings

    settings = settings_of(read, inherited)
    for path in (settings.model.path, settings.model.draft):
        if path is not None and _is_path(path):
            _check_model_file(path)
    if inherited is None and settings.server.supervised:
        return supervise(settings)

    from server.assembly import serve

    return serve(settings, lambda text: fetch(text, settings), inherited, read)


def _overrides(options: argparse.Namespace) -> list[Override]:
    from server.settings import Override

    given = [(_MODEL, "MODEL", options.model)]
    if options.allow_cpu:
        given.append(("model.n_gpu_layers", "--allow-cpu", "0"))
    for flags in _GROUPS.values():
        given += [(setting, flag, getattr(options, setting)) for flag, _, setting, _ in flags]
    return [
        Override(tuple(setting.split(".")), name, text)
        for setting, name, text in given
        if text is not None
    ]


def _is_path(model: Path) -> bool:
    """Tell a path from a catalogue name or hub reference, by its form or because it is there."""
    from server.catalog.modelfile import served_name

    if str(model).startswith(_HUB):  # `Path` makes one slash of two
        return False
    return model.exists() or model.suffix.lower() == ".gguf" or served_name(model) is not None


def fetch(text: str, settings: Settings) -> Path:
    """Return the file that `text` means; a catalogue name or hub reference may be downloaded."""
    path = Path(text).expanduser()
    if _is_path(path):
        _check_model_file(path)
        return path
    from server.cli.pull import ensure

    return ensure(text, settings)


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
