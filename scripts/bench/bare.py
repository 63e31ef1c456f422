"""The bare loop: `llama_decode` and `llama_sampler_sample` straight from llama_cpp, as a worker.

The first line on standard input is a `Load`, every further one a `Job`; see bench.common.
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import llama_cpp
from llama_cpp import llama_cpp as native

from bench.common import Job, prompt, serve_lines


class BareLoop:
    """One model and context, configured as the server configures its own."""

    def __init__(self, load: dict[str, Any]) -> None:
        self.slots: int = load["slots"]
        self.quiet = native.llama_log_callback(lambda _level, _text, _data: None)
        llama_cpp.llama_log_set(self.quiet, None)
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = -1 if llama_cpp.llama_supports_gpu_offload() else 0
        self.model: Any = llama_cpp.llama_model_load_from_file(load["model"].encode(), model_params)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.slots * load["n_ctx"]
        params.n_batch = params.n_ubatch = load["n_batch"]
        params.n_seq_max = params.n_outputs_max = self.slots
        params.n_threads = params.n_threads_batch = load["threads"]
        params.kv_unified = True
        params.flash_attn_type = 1
        self.context: Any = llama_cpp.llama_init_from_model(self.model, params)
        self.vocab: Any = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.batch = llama_cpp.llama_batch_init(load["n_batch"], 0, 1)
        self.n_batch: int = load["n_batch"]

    def run(self, job: Job) -> float:
        """Compute the prompts, then time the decode steps; tokens per second."""
        memory = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_clear(memory, True)
        samplers = [self._sampler(job, seed) for seed in range(self.slots)]
        tokens, positions = [], []
        for slot, sampler in enumerate(samplers):
            ids = self._tokenize(prompt(slot, job.words))
            self._prefill(slot, ids)
            tokens.append(llama_cpp.llama_sampler_sample(sampler, self.context, -1))
            positions.append(len(ids))
        start = time.perf_counter()
        for _ in range(job.tokens - 1):
            tokens = self._step(samplers, tokens, positions)
        seconds = time.perf_counter() - start
        for sampler in samplers:
            llama_cpp.llama_sampler_free(sampler)
        return self.slots * (job.tokens - 1) / seconds

    def _step(self, samplers: list[Any], tokens: list[int], positions: list[int]) -> list[int]:
        batch, context = self.batch, self.context
        for slot, token in enumerate(tokens):
            batch.token[slot] = token
            batch.pos[slot] = positions[slot]
            batch.n_seq_id[slot] = 1
            batch.seq_id[slot][0] = slot
            batch.logits[slot] = 1
            positions[slot] += 1
        batch.n_tokens = len(tokens)
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        return [
            llama_cpp.llama_sampler_sample(sampler, context, slot)
            for slot, sampler in enumerate(samplers)
        ]

    def _prefill(self, slot: int, ids: list[int]) -> None:
        batch = self.batch
        for begin in range(0, len(ids), self.n_batch):
            chunk = ids[begin : begin + self.n_batch]
            for i, token in enumerate(chunk):
                batch.token[i] = token
                batch.pos[i] = begin + i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = slot
                batch.logits[i] = begin + i + 1 == len(ids)
            batch.n_tokens = len(chunk)
            if llama_cpp.llama_decode(self.context, batch):
                raise RuntimeError("llama_decode failed")

    def _tokenize(self, text: str) -> list[int]:
        data = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n".encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = native.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, True)
        return ids[:count]

    def _sampler(self, job: Job, seed: int) -> Any:
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        ends = [t for t in range(self.n_vocab) if llama_cpp.llama_vocab_is_eog(self.vocab, t)]
        biases = (native.llama_logit_bias * len(ends))()
        for bias, token in zip(biases, ends, strict=True):
            bias.token, bias.bias = token, float("-inf")
        stages = [native.llama_sampler_init_logit_bias(self.n_vocab, len(ends), biases)]
        if job.greedy:
            stages.append(llama_cpp.llama_sampler_init_greedy())
        else:
            stages += [
                llama_cpp.llama_sampler_init_top_k(job.top_k),
                llama_cpp.llama_sampler_init_top_p(job.top_p, 1),
                llama_cpp.llama_sampler_init_temp(job.temperature),
                llama_cpp.llama_sampler_init_dist(seed),
            ]
        for stage in stages:
            llama_cpp.llama_sampler_chain_add(chain, stage)
        return chain


def main() -> None:
    """Answer a `Load`, then any number of `Job`s."""
    loaded: list[BareLoop] = []

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        if not loaded:
            loaded.append(BareLoop(asked))
            return {"ready": True}
        return {"rate": loaded[0].run(Job(**asked))}

    serve_lines(answer)


if __name__ == "__main__":
    main()
