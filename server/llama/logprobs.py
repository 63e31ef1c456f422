"""Log-probabilities of one position under the model's own distribution."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from server.core.events import SampledLogprobs, TokenLogprob


class LogprobReader:
    """Works in arrays of its own: nothing of the vocabulary's size is allocated per token."""

    def __init__(self, n_vocab: int) -> None:
        """Five bytes per token of the vocabulary."""
        self._values = np.empty(n_vocab, dtype=np.float32)
        self._marks = np.empty(n_vocab, dtype=np.bool_)

    def read(self, logits: npt.NDArray[np.float32], token: int, top: int) -> SampledLogprobs:
        """Log-softmax of `logits` (n_vocab,) at `token` and at the `top` likeliest, in falling order; ties by id.

        Natural logarithms, summed in float64.
        """
        values, most = self._values, logits.max()
        np.subtract(logits, most, out=values)
        np.exp(values, out=values)
        norm = math.log(float(np.sum(values, dtype=np.float64)))

        def logprob(index: int) -> float:
            return float(logits[index] - most) - norm

        likeliest = tuple(TokenLogprob(i, logprob(i)) for i in self._likeliest(logits, top))
        return SampledLogprobs(token_id=token, logprob=logprob(token), top=likeliest)

    def _likeliest(self, logits: npt.NDArray[np.float32], top: int) -> list[int]:
        count = min(top, len(logits))
        if count <= 0:
            return []
        values = self._values
        np.copyto(values, logits)
        values.partition(len(logits) - count)
        np.greater_equal(logits, values[len(logits) - count], out=self._marks)
        # Equal ones at the end make them more than are wanted.
        candidates = np.flatnonzero(self._marks)
        order = np.lexsort((candidates, -logits[candidates]))
        return [int(i) for i in candidates[order[:count]]]
