"""`onegpu plan`: what a model takes and what fits, from the header of its file alone."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from server.cli.pull_options import add_hub_flags, add_library_flags, library_of, load_settings
from server.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.catalog.gguf import GgufHeader
    from server.catalog.hub import Hub
    from server.catalog.plan import Choice, DraftWish, Memory, ModelShape, Wishes
    from server.catalog.references import ModelRef
    from server.cli.parsing import Commands
    from server.settings import Settings

_DESCRIPTION = """\
Say what MODEL takes on the GPU and in system memory, and which slots × context fit, before
anything is loaded or downloaded: only the header of the file is read, of a file on the hub by
range requests (8 MB for a vocabulary of 150,000 tokens).

Any wish may be auto (the default): then the best that fits is chosen. Everything on the GPU
comes first, then the most exact KV type, then more slots and longer contexts."""
_EPILOG = """\
examples:
  onegpu plan models/demo.gguf                     for this machine
  onegpu plan qwen3:32b-q4_k_m --vram 24GiB        a file on the hub, for such a card
  onegpu plan hf:owner/repo:Q4_K_M --slots 4 --n-ctx 8192
  onegpu plan qwen3:32b --draft qwen3:0.6b         with a draft model
  onegpu plan m.gguf --n-gpu-layers all --json     numbers in bytes, for programs

Exit status: 0 it fits, 1 nothing does, 2 wrong usage."""
_FAILURE = 1
_AUTO = "auto"


def add_parser(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "plan",
        prog="onegpu plan",
        help="what a model takes, and what fits",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("model", metavar="MODEL", help="a GGUF file, a name, or hf:owner/repo")
    wishes = parser.add_argument_group("wishes (a value, or auto)")
    for flag, metavar, text in (
        ("--slots", "N", "requests that run at once"),
        ("--n-ctx", "TOKENS", "most tokens of one request"),
        ("--kv-cells", "TOKENS", "the whole KV cache; auto: slots × n_ctx"),
        ("--kv-type", "TYPE", "f16, q8_0, q4_0 and others"),
        ("--n-gpu-layers", "N", "layers on the GPU, or all"),
        ("--n-cpu-moe", "N", "layers whose experts stay in system memory"),
    ):
        wishes.add_argument(flag, metavar=metavar, default=_AUTO, help=text)
    _add_fixed(parser)
    add_library_flags(parser)
    add_hub_flags(parser)


def _add_fixed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--n-ubatch", metavar="ROWS", default="512", help="rows of a graph [512]")
    parser.add_argument(
        "--kv-layout",
        choices=("auto", "unified", "split"),
        default=_AUTO,
        help="auto: split on a CPU",
    )
    parser.add_argument(
        "--flash-attention",
        choices=("auto", "on", "off"),
        default=_AUTO,
        help="auto: off in a CPU's split layout",
    )
    parser.add_argument(
        "--draft", metavar="MODEL", help="a small model of this family, which foresees tokens"
    )
    parser.add_argument("--vram", metavar="SIZE", help="plan for such a card, 24GiB [this one]")
    parser.add_argument("--ram", metavar="SIZE", help="plan for so much system memory [this one]")
    parser.add_argument("--cpu", action="store_true", help="plan without the GPU")
    parser.add_argument("--all-layers", action="store_true", help="a row for every layer")
    parser.add_argument("--json", action="store_true", help="print numbers in bytes")


def run(options: argparse.Namespace) -> int:
    """Print the plan. Raises ConfigError, ModelFileError or HubError."""
    from server.catalog.drafts import draft_warnings
    from server.catalog.plan import (
        RopeWish,
        check_context,
        check_experts,
        choose,
        read_shape,
        render,
        verdict,
    )

    settings = load_settings(options)
    wishes = _wishes(options, settings.engine.effective_draft_rows)
    memory = _memory(options, settings)
    headers, name = _headers(options.model, settings, memory, wishes)
    shape = read_shape(headers)
    if options.draft is not None:
        wishes = replace(wishes, draft=_draft(options, settings, memory, headers[0], shape))
    check_experts(shape, wishes.n_cpu_moe)
    if isinstance(wishes.n_ctx, int):
        rope = settings.model.rope_scaling
        stretched = RopeWish(rope.type, rope.freq_base, rope.freq_scale, rope.orig_ctx)
        check_context(shape, wishes.n_ctx, stretched)
    choice = choose(shape, wishes, memory)
    if options.json:
        print(json.dumps(_document(shape, wishes, memory, choice, name), indent=1))
    else:
        print(render(shape, wishes, memory, choice, every_layer=options.all_layers))
        print(verdict(name, choice, options.draft), end="")
    if wishes.draft is not None and choice.best is not None:
        for text in draft_warnings(shape, wishes.draft.shape, choice.best.n_ctx):
            print(f"Warning: {text}.", file=sys.stderr)
    return 0 if choice.best is not None else _FAILURE


def _wishes(options: argparse.Namespace, draft_rows: int) -> Wishes:
    from server.catalog.plan import Wishes

    layers = options.n_gpu_layers
    rows = _number(options.n_ubatch, "--n-ubatch")
    if rows == _AUTO:
        raise ConfigError("--n-ubatch must be a number: nothing is chosen for it.")
    return Wishes(
        slots=_number(options.slots, "--slots"),
        n_ctx=_number(options.n_ctx, "--n-ctx"),
        kv_cells=_number(options.kv_cells, "--kv-cells"),
        kv_type=options.kv_type,
        n_gpu_layers=layers if layers == "all" else _number(layers, "--n-gpu-layers"),
        n_cpu_moe=_number(options.n_cpu_moe, "--n-cpu-moe"),
        n_ubatch=rows,
        n_batch=max(512, rows),
        draft_rows=draft_rows,
        kv_layout=options.kv_layout,
        flash_attention=options.flash_attention,
    )


def _draft(
    options: argparse.Namespace,
    settings: Settings,
    memory: Memory,
    main: GgufHeader,
    shape: ModelShape,
) -> DraftWish:
    """Read the draft model's header. Raises `ConfigError` where it cannot draft for the model."""
    from server.catalog.drafts import check_draft
    from server.catalog.plan import DraftWish, Wishes, read_shape
    from server.settings.relations import draft_conflict

    rows = min(_number(options.n_ubatch, "--n-ubatch"), settings.engine.effective_n_ubatch)
    if conflict := draft_conflict(settings.engine.model_copy(update={"n_ubatch": rows})):
        raise ConfigError(f"--draft {conflict.message}.")
    headers, _ = _headers(options.draft, settings, memory, Wishes())
    draft = read_shape(headers)
    check_draft(main, headers[0], (shape, draft))
    return DraftWish(draft)


def _number(text: str, flag: str) -> Any:
    if text == _AUTO:
        return _AUTO
    if not text.isdecimal():
        raise ConfigError(f"{flag} must be auto or a number, not {text!r}.")
    return int(text)


def _memory(options: argparse.Namespace, settings: Settings) -> Memory:
    """Describe the machine to plan for: this one, or the one that the flags describe."""
    from server.catalog.plan import Memory, repacked_types
    from server.llama.main_card import main_card
    from server.ops.gpu import read_cards
    from server.ops.machine import available_memory, cpu_flags

    reserve = settings.memory.reserve
    ram = None if options.ram is None else _size(options.ram, "--ram")
    vram = settings.memory.vram
    if options.vram is not None and not options.cpu:
        # A card that is somewhere else: what memory stands beside it, nobody said.
        return Memory(gpu_total=vram, cpu_available=ram, reserve=reserve)
    cards = [] if options.cpu else read_cards()
    here = available_memory() if ram is None else ram
    repacked = repacked_types(cpu_flags())
    if not cards:
        left = None if here is None else max(here - reserve, 0)
        return Memory(cpu_available=left, reserve=reserve, repacked=repacked)
    card = main_card(cards, settings.model.main_gpu)
    total = card.total if vram is None else min(vram, card.total)
    return Memory(total, card.free, here, card.name, reserve, repacked)


def _size(text: str, flag: str) -> int:
    from server.settings.quantities import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise ConfigError(f"{flag} {error}, not {text!r}.") from error


def _headers(
    text: str, settings: Settings, memory: Memory, wishes: Wishes
) -> tuple[Sequence[GgufHeader], str]:
    """Read the headers of what `text` names, here or on the hub, and say how to name it again."""
    from server.catalog.gguf import check_parts

    library = library_of(settings)
    ref = library.catalogue.parse(text)
    path = library.find(ref)
    if path is None and ref.kind == "file":
        path = ref.path
    if path is not None:
        return check_parts(path), text
    return _remote(ref, settings, memory, wishes)


def _remote(
    ref: ModelRef, settings: Settings, memory: Memory, wishes: Wishes
) -> tuple[Sequence[GgufHeader], str]:
    from server.catalog.download_selection import Selector
    from server.catalog.header_source import planned_chooser, read_candidate
    from server.catalog.hub import Hub, HubOptions
    from server.cli.pull_progress import StreamProgress

    hub = Hub(HubOptions(settings.hub.endpoint, settings.hub.token, settings.hub.offline))
    library = library_of(settings)
    chooser = planned_chooser(hub, memory, wishes)
    progress = StreamProgress(sys.stderr)
    listing, candidate = Selector(ref, library, _listing(hub), chooser, progress).select()
    name = str(ref) if ref.quant or ref.file else str(replace(ref, quant=candidate.quant))
    del listing
    return read_candidate(hub, candidate), name


def _listing(hub: Hub) -> Any:
    from server.catalog.hub_errors import CLIENT_ERRORS, told

    def read(repo: str, revision: str | None) -> Any:
        try:
            return hub.listing(repo, revision)
        except CLIENT_ERRORS as error:
            raise told(error, repo, hub.endpoint, has_token=hub.has_token) from error

    return read


def _document(
    shape: ModelShape, wishes: Wishes, memory: Memory, choice: Choice, name: str
) -> dict[str, object]:
    """Build the JSON: the best plan's numbers (or the wish's, when nothing fits), then all else."""
    from server.catalog.plan import layer_plans, plan, slot_table

    shown = choice.best or plan(shape, wishes, memory)
    return {
        **shown.as_json(),
        "model": name,
        "architecture": shape.architecture,
        "n_ctx_train": shape.n_ctx_train,
        "file_bytes": shape.file_bytes,
        "reason": choice.reason,
        "alternatives": [other.as_json() for other in choice.alternatives],
        "layers": [each.as_json() for each in layer_plans(shape, wishes, memory, shown)],
        "slots_that_fit": slot_table(shape, wishes, memory, shown),
    }
