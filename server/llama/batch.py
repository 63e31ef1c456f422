"""The `llama_batch` of every step: numpy arrays whose addresses C is told once, rewritten in place."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from server.engine.plan import Rows
from server.llama.native import Batch


class BatchBuffer:
    """Room for `n_rows` rows of one sequence id each. The arrays live as long as this object."""

    def __init__(self, n_rows: int) -> None:
        """Allocate; `native` is what `llama_decode` takes."""
        self.n_rows = n_rows
        self._token = np.zeros(n_rows, dtype=np.int32)
        self._position = np.zeros(n_rows, dtype=np.int32)
        self._n_seq_id = np.ones(n_rows, dtype=np.int32)
        self._seq_id = np.zeros(n_rows, dtype=np.int32)
        self._output = np.zeros(n_rows, dtype=np.int8)
        # C reads sequence ids through a pointer per row; row i's points at element i.
        self._seq_id_pointers = (
            self._seq_id.ctypes.data + np.arange(n_rows, dtype=np.uintp) * self._seq_id.itemsize
        )
        self._count_up = np.arange(n_rows, dtype=np.int32)
        self._positions = self._position.data
        self._tokens = self._token.data
        self._seq_ids = self._seq_id.data
        self._outputs = self._output.data
        self.native = Batch(
            n_tokens=0,
            token=_pointer(self._token, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._position, ctypes.c_int32),
            n_seq_id=_pointer(self._n_seq_id, ctypes.c_int32),
            seq_id=_pointer(self._seq_id_pointers, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._output, ctypes.c_int8),
        )

    def fill(self, planned: Sequence[Rows]) -> list[tuple[Rows, int]]:
        """Write the rows one after the other; return those with outputs, each with the index of its first one.

        The caller has checked them.
        """
        outputs: list[tuple[Rows, int]] = []
        end = 0
        for rows in planned:
            begin, tokens = end, rows.tokens
            if len(tokens) == 1:
                end += 1
                self._tokens[begin] = tokens[0]
                self._positions[begin] = rows.start
                self._seq_ids[begin] = rows.slot
                self._outputs[begin] = 0
            else:
                end += len(tokens)
                self._token[begin:end] = tokens
                np.add(self._count_up[: end - begin], rows.start, out=self._position[begin:end])
                self._seq_id[begin:end] = rows.slot
                self._output[begin:end] = 0
            if rows.outputs == 1:
                self._outputs[end - 1] = 1
                outputs.append((rows, end - 1))
            elif rows.outputs:
                self._output[end - rows.outputs : end] = 1
                outputs.append((rows, end - rows.outputs))
        self.native.n_tokens = end
        return outputs


def _pointer(array: npt.NDArray[np.generic], kind: type) -> object:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
