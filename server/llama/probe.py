"""Trying a GGUF in a child process, because a bad file can abort llama.cpp and the process with it.

`python -m server.llama.probe PATH [ADAPTER]` prints one JSON line: `{"ok": true}`, or `{"error": "…"}`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from server.core.errors import ModelFileError, OnegpuError
from server.llama.adapter import check_adapter
from server.llama.model import refuse_non_decoders
from server.llama.native import Library, library
from server.llama.vocab import LlamaVocab

_TIMEOUT = 120.0
"""Seconds; a 150,000-token vocabulary takes about half of one."""
_SMALL = 256


def probe(path: Path, adapter: Path | None = None) -> None:
    """Raise `ModelFileError` with llama.cpp's own message unless the file loads as a decoder with a vocabulary.

    Weights are neither read nor allocated; the compute graph is planned, which is where wrong shapes abort.
    A LoRA `adapter` is loaded onto it, after `check_adapter` has held the two headers together.
    """
    files = [path] if adapter is None else [path, adapter]
    if adapter is not None:
        check_adapter(adapter, path)
    command = [sys.executable, "-m", "server.llama.probe", *map(str, files)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as error:
        message = f"{path}: llama.cpp did not finish reading the file within {_TIMEOUT:.0f} s."
        raise ModelFileError(message) from error
    reason = _verdict(done.stdout, done.stderr, done.returncode)
    if reason is not None:
        what = " with the adapter ".join(map(str, files))
        message = f"{what} cannot be served: {reason.rstrip('.')}. Download it again, or choose another file."
        raise ModelFileError(message)


def _verdict(stdout: str, stderr: str, code: int) -> str | None:
    """None when the child found the file sound, else what it or llama.cpp said."""
    try:
        answer = json.loads(stdout.strip().splitlines()[-1])
        return None if answer.get("ok") else str(answer["error"])
    except (IndexError, KeyError, ValueError, AttributeError):
        lines = [line.strip() for line in stderr.splitlines() if line.strip()]
        said = next(
            (line for line in lines if line.startswith("llama.cpp aborted")),
            lines[-1] if lines else "",
        )
        return f"llama.cpp broke off while reading it ({said or f'exit status {code}'})"


def check_special_ids(bound: Library, vocab: int) -> None:
    """Raise `ModelFileError` when BOS, EOS or EOT lie outside the vocabulary: llama.cpp loads such files."""
    n_vocab = bound.vocab_n_tokens(vocab)
    for name, token in (
        ("BOS", bound.vocab_bos(vocab)),
        ("EOS", bound.vocab_eos(vocab)),
        ("EOT", bound.vocab_eot(vocab)),
    ):
        if not -1 <= token < n_vocab:
            message = f"its {name} token is {token}, but the vocabulary has ids 0 to {n_vocab - 1}"
            raise ModelFileError(message)


def _try(path: str, adapter: str | None) -> None:
    """Load without weights, read the vocabulary, plan a small context, load the adapter."""
    bound = library()
    params = bound.model_default_params()
    params.n_gpu_layers = 0
    params.load_mode = 0
    params.no_alloc = True
    model = bound.model_load_from_file(path.encode(), params)
    if not model:
        raise ModelFileError(bound.log.reason())
    refuse_non_decoders(bound, model)
    vocab = bound.model_get_vocab(model)
    check_special_ids(bound, vocab)
    LlamaVocab(bound, vocab)
    if adapter is not None and not bound.adapter_lora_init(model, adapter.encode()):
        raise ModelFileError(bound.log.reason())
    context = bound.context_default_params()
    context.n_ctx = context.n_batch = context.n_ubatch = _SMALL
    context.n_seq_max = context.n_outputs_max = 1
    context.flash_attn_type = 1
    if not bound.init_from_model(model, context):
        raise ModelFileError(bound.log.reason())


def main() -> None:
    """Answer for the path in `sys.argv[1]` and the adapter after it, on standard output."""
    try:
        _try(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
        answer: dict[str, object] = {"ok": True}
    except OnegpuError as error:
        answer = {"error": error.message}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
