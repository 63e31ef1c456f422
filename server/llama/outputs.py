"""Drawing the token of one output row: its guide, its sampler, its log-probabilities."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from server.core.errors import GenerationFailed
from server.engine.plan import Sample
from server.llama.guide import Floats, Guide
from server.llama.logits import FLOAT_BYTES, float_at, floats_at
from server.llama.logprobs import LogprobReader
from server.llama.native import Address, Library
from server.llama.sampling import Sampler


class Outputs:
    """The rows of logits that a context's last decode call left."""

    def __init__(
        self,
        library: Library,
        context: Address,
        n_vocab: int,
        cpu_seconds: Callable[[], float] = time.thread_time,
    ) -> None:
        """`context` outlives it; `cpu_seconds`: what the calling thread took."""
        self._cpu_seconds = cpu_seconds
        self._library = library
        self._context = context
        self._n_vocab = n_vocab
        self._logprobs: LogprobReader | None = None
        """Made when somebody asks for log-probabilities."""
        self._whole: Floats | None = None
        """What the model said before a guide forbade some of it; made as above."""

    def draw(self, sampler: Sampler | None, index: int, position: int, token: int) -> Sample:
        """Draw from row `index` of the batch, whose input was `token` at `position` of its sequence.

        What goes wrong is in the `Sample`: it is this sequence's own failure, not its neighbours'.
        """
        try:
            return self._draw(sampler, index, position, token)
        except GenerationFailed as error:
            return Sample(-1, error=error)
        except Exception as error:  # noqa: BLE001 - must not take this sequence's neighbours along
            return Sample(-1, error=GenerationFailed(f"Sampling failed: {error}"))

    def _draw(self, sampler: Sampler | None, index: int, position: int, token: int) -> Sample:
        row = self._library.get_logits_ith(self._context, index)
        if sampler is None or not row:
            raise GenerationFailed("The model gave no output for this request.")
        # A NaN in the hidden state makes every logit one; llama.cpp would draw some token silently.
        if math.isnan(float_at(row)):
            raise GenerationFailed("The model computed NaN: its file is damaged or overflows.")
        guide, drawing, logprobs = sampler.guide, sampler.drawing, sampler.logprobs
        whole: Floats | None = None
        if guide is not None:
            whole = self._guided(guide, floats_at(row, self._n_vocab), (position, token), logprobs)
        if drawing is not None:
            drawn = drawing.draw(floats_at(row, self._n_vocab))
        else:
            drawn = self._library.sampler_sample(sampler.chain, self._context, index)
        # With nothing left to choose from, llama.cpp returns some token without a word.
        if drawn in sampler.forbidden or not math.isfinite(float_at(row + drawn * FLOAT_BYTES)):
            raise GenerationFailed("No token was allowed: all are forbidden or without a logit.")
        if logprobs is None:
            return Sample(drawn)
        if self._logprobs is None:
            self._logprobs = LogprobReader(self._n_vocab)
        if whole is None:
            whole = floats_at(row, self._n_vocab)
        return Sample(drawn, self._logprobs.read(whole, drawn, logprobs))

    def _guided(
        self, guide: Guide, logits: Floats, fed: tuple[int, int], logprobs: int | None
    ) -> Floats:
        """Forbid what `guide` forbids; return the model's own logits if log-probabilities are to be read."""
        begun, whole = self._cpu_seconds(), logits
        guide.take(*fed)
        if not guide.restricts():
            return logits
        if logprobs is not None:
            if self._whole is None:
                self._whole = np.empty(self._n_vocab, np.float32)
            np.copyto(self._whole, logits)
            whole = self._whole
        # llama.cpp's samplers read the same memory.
        guide.restrict(logits)
        guide.spend(self._cpu_seconds() - begun)
        return whole
