"""Decode calls of the given shapes, and how many graphs llama.cpp printed for each: run with LLAMA_BATCH_DEBUG=1."""

from __future__ import annotations

import ctypes
import json
import sys

import llama_cpp


def main() -> None:
    """Take a model's path, and JSON: unified, n_ubatch, and for each call pairs of slot and rows."""
    asked = json.loads(sys.argv[2])
    graphs = 0

    @llama_cpp.llama_log_callback
    def count(_level: int, text: bytes, _data: object) -> None:
        nonlocal graphs
        graphs += b"equal_seqs" in text

    llama_cpp.llama_log_set(count, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), params)
    wanted = llama_cpp.llama_context_default_params()
    wanted.n_ctx, wanted.n_seq_max = 1024, 4
    wanted.n_batch, wanted.n_ubatch = 256, asked["n_ubatch"]
    wanted.kv_unified = asked["unified"]
    context = llama_cpp.llama_init_from_model(model, wanted)
    batch = llama_cpp.llama_batch_init(256, 0, 1)
    counted = []
    for shape in asked["shapes"]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        rows = [(slot, position) for slot, length in shape for position in range(length)]
        for index, (slot, position) in enumerate(rows):
            batch.token[index], batch.pos[index] = 1, position
            batch.n_seq_id[index], batch.logits[index] = 1, 0
            batch.seq_id[index][0] = slot
        batch.n_tokens = len(rows)
        batch.logits[len(rows) - 1] = 1
        graphs = 0
        if llama_cpp.llama_decode(context, batch) != 0:
            raise SystemExit("the call failed")
        counted.append(graphs - 1)  # the call itself is printed like one
    sys.stdout.write(json.dumps(counted))


main()
