"""The draft model: a second, small model whose likeliest next tokens are drafts for the main one.

What it says changes no answer: every token of a draft is verified (`LlamaBackend.decode`). So it draws nothing, and
what fails here costs drafts and no request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from server.catalog.plan import Allocated
from server.core.errors import ConfigError
from server.engine.interface import DraftInfo
from server.engine.plan import DecodeCode, Foreseen, Rows
from server.llama.batch import BatchBuffer
from server.llama.logits import floats_at
from server.llama.model import LoadedModel, free_model, load_model
from server.llama.native import Library
from server.llama.params import LlamaParams
from server.llama.vocab import LlamaVocab
from server.llama.warmup import WarmUp

_MOST_PADDING = 128
"""Ids by which two vocabularies may differ: families pad them to multiples of other numbers per size."""


class DraftModel:
    """Owns weights and context; counts the cells of each of its slots: positions 0 … count-1."""

    def __init__(self, loaded: LoadedModel, params: LlamaParams, n_vocab: int) -> None:
        """Take over `loaded`; `free` ends it. `n_vocab`: ids that both models know."""
        self._loaded = loaded
        self._library = loaded.library
        self._context = loaded.context
        self._memory = self._library.get_memory(loaded.context)
        self._n_vocab = n_vocab
        self._cells = [0] * params.slots
        self._batch = BatchBuffer(self._library.n_batch(loaded.context))
        self._unified = params.unified
        self._on_card = params.n_gpu_layers != 0

    @classmethod
    def load(
        cls,
        library: Library,
        main: LlamaParams,
        vocab: LlamaVocab,
        progress: Callable[[float], None],
    ) -> Self | None:
        """Load the draft model of `main`, whose vocabulary is `vocab`; None when there is none to load.

        Raises `ModelFileError` or `ConfigError`, also for a model whose tokens are not those of the main one.
        """
        params = main.drafting()
        if params is None:
            return None
        loaded = load_model(library, params, progress)
        try:
            known = _common_vocabulary(
                loaded, vocab, f"{main.path} and its draft model {params.path}"
            )
            return cls(loaded, params, known)
        except BaseException:
            free_model(loaded)
            raise

    @property
    def info(self) -> DraftInfo:
        """Facts about it."""
        return DraftInfo(n_vocab=self._n_vocab, rows=self._batch.n_rows)

    @property
    def allocated(self) -> Allocated:
        """What llama.cpp reported to have allocated."""
        return self._loaded.allocated

    def cells(self, slot: int) -> int:
        """Cells that `slot` holds by this object's own count."""
        return self._cells[slot]

    def foresee(self, planned: list[Rows]) -> Foreseen:
        """Run one decode call over `planned`; of each with an output return the likeliest next token.

        What a slot holds at and behind its first row goes before. When the call fails, its slots are empty.
        """
        if (fault := self._fault(planned)) is not None:
            return Foreseen(DecodeCode.INVALID, reason=fault)
        for rows in planned:
            self._keep(rows.slot, rows.start)
        outputs = self._batch.fill(planned)
        raw = self._library.decode(self._context, self._batch.native)
        if raw:
            for rows in planned:
                self._keep(rows.slot, 0)
            return Foreseen(DecodeCode(raw) if raw in (1, 2, -1) else DecodeCode.FAILED)
        for rows in planned:
            self._cells[rows.slot] = rows.start + len(rows.tokens)
        # Whoever measures the call, or the main model's next one, must not wait for the rest of this one.
        self._library.synchronize(self._context)
        return Foreseen(tokens=[self._likeliest(index) for _, index in outputs])

    def warm_up(self, *, deep: bool) -> int:
        """Decode once and forget it, at full depth only what computes on a card; return the depth in cells.

        Raises `ConfigError` when it fails.
        """
        slots = len(self._cells)
        warming = WarmUp(
            library=self._library,
            context=self._context,
            batch=self._batch,
            slots=slots,
            outputs=slots,
            unified=self._unified,
            token=0,
        )
        return warming.run(deep=deep and self._on_card)

    def free(self) -> None:
        """Free context and weights; harmless when repeated."""
        if self._context:
            self._context = self._memory = 0
            free_model(self._loaded)

    # Details

    def _keep(self, slot: int, cells: int) -> None:
        """Drop cells from position `cells` on. A cell of a failed call may be there without being counted."""
        if cells == 0 or cells < self._cells[slot]:
            self._library.memory_seq_rm(self._memory, slot, cells, -1)
        self._cells[slot] = cells

    def _likeliest(self, index: int) -> int:
        """Return the token, among those of both models, with the highest logit of row `index`."""
        address = self._library.get_logits_ith(self._context, index)
        if not address:
            message = f"the draft model has no logits for row {index}"
            raise RuntimeError(message)
        return int(floats_at(address, self._n_vocab).argmax())

    def _fault(self, planned: list[Rows]) -> str | None:
        """Say what llama.cpp would abort on, refuse or silently misplace; None when the rows are sound."""
        total, last = 0, -1
        for rows in planned:
            if not last < rows.slot < len(self._cells):
                return f"slot {rows.slot} after slot {last}"
            if not rows.tokens or min(rows.tokens) < 0 or max(rows.tokens) >= self._n_vocab:
                return f"tokens of slot {rows.slot} are missing or not in both vocabularies"
            if not 0 <= rows.start <= self._cells[rows.slot] or rows.outputs not in (0, 1):
                return f"slot {rows.slot} starts at {rows.start} of {self._cells[rows.slot]} cells"
            last = rows.slot
            total += len(rows.tokens)
        return None if 0 < total <= self._batch.n_rows else f"{total} rows"


def _common_vocabulary(loaded: LoadedModel, main: LlamaVocab, files: str) -> int:
    """Count the ids that both models know. Raises `ConfigError` for a model that cannot draft for the main one."""
    library, model = loaded.library, loaded.model
    if library.model_is_recurrent(model) or library.model_is_hybrid(model):
        message = f"{files}: a recurrent model cannot be the draft model, for it cannot forget what did not come true."
        raise ConfigError(message)
    draft = LlamaVocab(library, library.model_get_vocab(model))
    draft.close()
    check_vocabularies(main, draft, files)
    return min(main.n_vocab, draft.n_vocab)


def check_vocabularies(main: LlamaVocab, draft: LlamaVocab, files: str) -> None:
    """Raise `ConfigError` unless the same ids stand for the same text in both. `files` names them.

    What begins and ends a text need not be alike: a prompt comes as ids, and where an answer ends the main model says.
    """
    remedy = "Choose a draft model of the same family and generation."
    if main.kind != draft.kind:
        message = f"{files} have tokenizers of different kinds. {remedy}"
        raise ConfigError(message)
    if abs(main.n_vocab - draft.n_vocab) > _MOST_PADDING:
        message = (
            f"{files} have vocabularies of {main.n_vocab} and {draft.n_vocab} tokens. {remedy}"
        )
        raise ConfigError(message)
    both = range(min(main.n_vocab, draft.n_vocab))
    differs = next((token for token in both if main.text_of(token) != draft.text_of(token)), None)
    if differs is not None:
        message = (
            f"{files} do not have the same tokens: {differs} is {main.text_of(differs)!r} in the one and "
            f"{draft.text_of(differs)!r} in the other. {remedy}"
        )
        raise ConfigError(message)
