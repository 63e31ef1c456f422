"""`onegpu pull`: get a model's weights, or find that they are here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from server.cli.pull_options import add_hub_flags, add_library_flags, library_of, load_settings

if TYPE_CHECKING:
    from server.cli.parsing import Commands
    from server.settings import Settings

_DESCRIPTION = """\
Download NAME's weights into the models folder and print the path of the file.

NAME is a name of the catalogue (qwen3:32b, qwen3:32b-q4_k_m), a repository of the hub
(hf:owner/repo, hf:owner/repo:Q4_K_M, hf:owner/repo/file.gguf), or the address of a LoRA adapter
(https://host/file.gguf#sha256=…). Without a quantization the
largest is taken that fits the GPU, or memory on a machine without one. Weights that Ollama or
the hub's own cache hold are used where they are.

An interrupted download goes on where it stopped. A file has its name only once its SHA-256 is
the hub's, or the one that an address names."""

_EPILOG = """\
examples:
  onegpu pull qwen3:8b                              the largest quantization that fits
  onegpu pull qwen3:32b-q4_k_m                      19.8 GB
  onegpu pull hf:bartowski/Qwen2.5-7B-Instruct-GGUF:IQ4_XS
  onegpu pull qwen3:32b --endpoint https://hf-mirror.com
  onegpu pull --list                                the catalogue

Exit status: 0 the file is there, 1 the download failed, 2 wrong name or usage."""


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "pull",
        prog="onegpu pull",
        help="download a model's weights",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("name", nargs="?", metavar="NAME", help="what to get")
    parser.add_argument("--list", action="store_true", help="print the catalogue and end")
    parser.add_argument(
        "--vram", metavar="SIZE", help="choose for such a card, 24GiB [the one that is there]"
    )
    add_library_flags(parser)
    add_hub_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Pull and print the path. Raises ConfigError, ModelFileError or HubError."""
    if options.list:
        _print_catalogue()
        return 0
    if options.name is None:
        options.parser.error("the following arguments are required: NAME")
    try:
        print(ensure(options.name, load_settings(options)))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise
    return 0


def ensure(text: str, settings: Settings) -> Path:
    """Return the file of the model that `text` names, pulling it with progress on standard error.

    An address that is not the hub's is that of a LoRA adapter. A path is returned as it is found. Raises
    `ConfigError` for a name, `ModelFileError` for a damaged or unsuitable model, `HubError` for everything about
    network, access, disk and offline mode.
    """
    from server.catalog.address import parse_address
    from server.catalog.address_download import pull_adapter
    from server.catalog.download import pull
    from server.cli.pull_choice import chooser_for
    from server.cli.pull_progress import StreamProgress

    hub, progress = settings.hub, StreamProgress(sys.stderr)
    address = parse_address(text)
    if address is not None:
        return pull_adapter(address, settings.models_dir, progress=progress, offline=hub.offline)
    library = library_of(settings)
    return pull(
        library.catalogue.parse(text),
        library,
        quant_chooser=chooser_for(settings),
        progress=progress,
        token=hub.token,
        endpoint=hub.endpoint,
        offline=hub.offline,
    )


def _print_catalogue() -> None:
    from server.catalog.catalogue_models import builtin_catalogue
    from server.catalog.download_choice import size_text

    for model in builtin_catalogue().models:
        aliases = f" (also {', '.join(model.aliases)})" if model.aliases else ""
        print(f"{model.name}{aliases}: {model.n_ctx_train} tokens, {model.license}")
        for source in model.sources:
            sizes = [f"{quant} {size_text(size)}" for quant, size in source.sizes.items()]
            print(f"    hf:{source.repo}  {', '.join(sizes)}")
