"""`LlamaBackend`: one context, driven by step plans. Only the engine thread calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from server.catalog.plan import Allocated
from server.core.errors import ConfigError
from server.core.request import GenerationRequest
from server.engine.interface import HostState, ModelInfo
from server.engine.plan import DecodeCode, Foreseen, Rows, Sample, StepPlan, StepResult
from server.llama import saved
from server.llama.arena import Arena
from server.llama.batch import BatchBuffer
from server.llama.calls import grouping, passes
from server.llama.draft import DraftModel
from server.llama.drawing import Workspace
from server.llama.dry import DryPrototypes
from server.llama.guide import Masks
from server.llama.model import LoadedModel, free_model, read_info
from server.llama.outputs import Outputs
from server.llama.params import LlamaParams
from server.llama.sampling import SamplerSource
from server.llama.saved import SavedCells
from server.llama.slot_samplers import SlotSamplers
from server.llama.vocab import LlamaVocab
from server.llama.warmup import WarmUp


class LlamaBackend:
    """Decodes plans, samples their outputs, and keeps its own count of every slot's cells."""

    def __init__(
        self, loaded: LoadedModel, params: LlamaParams, arena: Arena | None = None
    ) -> None:
        """Take over `loaded`; `shutdown` frees it. `arena`: where saved cells go while it has room."""
        self._draft: DraftModel | None = None
        self._arena = arena
        self._loaded = loaded
        self._library = loaded.library
        self._context = loaded.context
        self._memory = self._library.get_memory(loaded.context)
        vocab_address = self._library.model_get_vocab(loaded.model)
        self._vocab = LlamaVocab(self._library, vocab_address)
        _ = self._vocab.grammars  # now, while nobody waits
        self._n_vocab = self._vocab.n_vocab
        self._info = read_info(loaded, params, self._n_vocab)
        n_ubatch = min(params.n_ubatch, params.effective_n_batch)
        self._passes = partial(passes, n_ubatch=n_ubatch, unified=params.unified)
        self._grouped = grouping(params, self._info.calls)
        self._unified = params.unified
        self._most_outputs = params.outputs
        self._cells = [0] * params.slots
        self._outputs = Outputs(self._library, loaded.context, self._n_vocab)
        self._source = SamplerSource(
            library=self._library,
            vocab=vocab_address,
            n_vocab=self._n_vocab,
            n_ctx=params.n_ctx,
            eog=self._vocab.eog,
            suppressed=self._vocab.suppressed,
            dry=DryPrototypes(self._library, vocab_address),
            workspace=Workspace(self._n_vocab),
            masks=Masks(self._vocab),
        )
        self._samplers = SlotSamplers(self._source, params.slots)
        self._batch = BatchBuffer(self._library.n_batch(loaded.context))

    @property
    def info(self) -> ModelInfo:
        """Facts about the model."""
        return self._info

    @property
    def allocated(self) -> Allocated:
        """What the load took, by llama.cpp's own log; `server.catalog.plan.compare` wants it."""
        return self._loaded.allocated

    @property
    def draft_allocated(self) -> Allocated | None:
        """The same of the draft model; None without one."""
        return None if self._draft is None else self._draft.allocated

    @property
    def tokenizer(self) -> LlamaVocab:
        """Its vocabulary."""
        return self._vocab

    @property
    def n_batch(self) -> int:
        """Most rows of one plan."""
        return self._batch.n_rows

    def cells(self, slot: int) -> int:
        """Cells that `slot` holds by this object's own count: positions 0 … cells-1."""
        return self._cells[slot]

    def truncate(self, slot: int, keep: int) -> None:
        """Drop the cells of `slot` at positions ≥ `keep`.

        Raises `ValueError` for a slot or count that is not there, `RuntimeError` when llama.cpp
        refuses.
        """
        # llama.cpp asserts on a sequence id out of range, and reads a negative one as "all".
        if not 0 <= slot < len(self._cells) or not 0 <= keep <= self._cells[slot]:
            message = f"cannot keep {keep} cells of slot {slot}"
            raise ValueError(message)
        if keep == self._cells[slot] and keep:
            return
        if not self._library.memory_seq_rm(self._memory, slot, keep, -1):
            # Only a recurrent memory refuses, and it always takes a removal as a whole.
            self._library.memory_seq_rm(self._memory, slot, -1, -1)
            self._cells[slot] = 0
            message = f"llama.cpp cannot keep {keep} cells of slot {slot}: this model's memory is all or nothing"
            raise RuntimeError(message)
        self._cells[slot] = keep

    def copy(self, source: int, slot: int, cells: int) -> None:
        """Let the empty `slot` have the first `cells` cells of `source`: an entry per cell in the unified layout.

        The split one copies all that `source` holds by way of host memory, then drops the rest; `RuntimeError` and
        `MemoryError` when that fails. Raises `ValueError` for what is not there or cannot be copied.
        """
        held, info = self._cells, self._info
        known = 0 <= source < len(held) and 0 <= slot < len(held) and source != slot
        able = info.shares_cells or (info.saves_cells and info.partial_removal)
        if not able or not known or held[slot] or not 0 < cells <= held[source]:
            message = f"slot {slot} cannot have {cells} cells of slot {source}"
            raise ValueError(message)
        if info.shares_cells:
            self._library.memory_seq_cp(self._memory, source, slot, 0, cells)
            held[slot] = cells
            return
        if not self.restore(slot, self.save(source, held[source])):
            message = f"slot {slot} did not take {held[source]} cells of slot {source}"
            raise RuntimeError(message)
        self.truncate(slot, cells)

    def state_bytes(self, slot: int) -> int:
        """Bytes that `save` would take now."""
        return saved.state_bytes(self._library, self._context, slot)

    def save(self, slot: int, cells: int) -> SavedCells:
        """Copy all cells of `slot` to host memory. `RuntimeError` when llama.cpp refuses, `MemoryError`.

        Raises `ValueError` when it does not hold exactly `cells`.
        """
        if not self._info.saves_cells or not 0 < cells == self._cells[slot]:
            message = f"cannot save {cells} cells of slot {slot}, which holds {self._cells[slot]}"
            raise ValueError(message)
        return saved.save(self._library, self._context, slot, cells, self._arena)

    def restore(self, slot: int, state: HostState) -> int:
        """Put `state` into the empty `slot`; return its cells then: all of `state`'s, or 0 for want of room.

        Raises `ValueError` for a slot that is not empty, and for what another kind of backend saved.
        """
        if self._cells[slot] or not isinstance(state, SavedCells):
            message = f"slot {slot} holds {self._cells[slot]} cells and cannot take {state!r}"
            raise ValueError(message)
        self._cells[slot] = saved.restore(self._library, self._context, slot, state)
        return self._cells[slot]

    def open(self, slot: int, request: GenerationRequest) -> None:
        """Make the sampler of `slot`, or go on with the one that was set aside for this request.

        Raises `ValueError` for parameters that llama.cpp cannot take.
        """
        self._samplers.open(slot, request)

    def set_aside(self, slot: int, request_id: str) -> None:
        """Keep a chain as it is, with its random state and what it looks back on, for the request's next `open`."""
        self._samplers.set_aside(slot, request_id)

    def forget(self, request_id: str) -> None:
        """Free a sampler that was set aside; harmless when there is none."""
        self._samplers.forget(request_id)

    def close(self, slot: int) -> None:
        """Free the sampler of `slot`; harmless when there is none."""
        self._samplers.close(slot)

    def decode(self, plan: StepPlan) -> StepResult:
        """Run one decode call, or several for it, and sample each output row. Never raises for what one request did."""
        if (fault := self._fault(plan.rows)) is not None:
            return StepResult(DecodeCode.INVALID, reason=fault)
        groups = self._grouped(plan.rows)
        if len(groups) == 1:
            return self._call(plan.rows)
        samples: dict[int, list[Sample]] = {}
        passes = 0
        for group in groups:
            result = self._call(group)
            if result.code is not DecodeCode.OK:
                failed = {rows.slot: self._resync(rows) for rows in plan.rows}
                return StepResult(DecodeCode.FAILED, cells=failed)
            slots = (rows.slot for rows in group if rows.outputs)
            samples.update(zip(slots, result.samples, strict=True))
            passes += result.passes
        drawn = [samples[rows.slot] for rows in plan.rows if rows.outputs]
        return StepResult(samples=drawn, passes=passes)

    def _call(self, planned: list[Rows]) -> StepResult:
        """Run one `llama_decode` over checked rows and sample its outputs."""
        outputs = self._batch.fill(planned)
        raw = self._library.decode(self._context, self._batch.native)
        if raw == DecodeCode.OK:
            for rows in planned:
                self._cells[rows.slot] = rows.start + len(rows.tokens)
            drawn = [self._sample(rows, index) for rows, index in outputs]
            return StepResult(samples=drawn, passes=self._passes(planned))
        code = DecodeCode(raw) if raw in (1, 2, -1) else DecodeCode.FAILED
        if code in (DecodeCode.ABORTED, DecodeCode.FAILED):
            return StepResult(code, cells={rows.slot: self._resync(rows) for rows in planned})
        return StepResult(code)

    def load_draft(self, params: LlamaParams, progress: Callable[[float], None]) -> None:
        """Load the draft model that `params` name, if they do. Raises `ModelFileError` or `ConfigError`."""
        if params.draft is not None and not self._info.partial_removal:
            message = f"{params.path} cannot have a draft model: its memory cannot forget what did not come true."
            raise ConfigError(message)
        self._draft = DraftModel.load(self._library, params, self._vocab, progress)
        if self._draft is not None:
            self._info = replace(self._info, draft=self._draft.info)

    def foresee(self, rows: list[Rows]) -> Foreseen:
        """Run one decode call of the draft model."""
        if self._draft is None:
            message = "there is no draft model"
            raise RuntimeError(message)
        return self._draft.foresee(rows)

    def shutdown(self) -> None:
        """Free the draft model, samplers, context and model, in this order; harmless when repeated."""
        if self._draft is not None:
            self._draft.free()
        self._samplers.free()
        self._source.dry.free()
        self._vocab.close()
        if self._context:
            self._context = self._memory = 0
            free_model(self._loaded)
            if self._arena is not None:
                self._arena.cool()

    def _fault(self, planned: list[Rows]) -> str | None:
        """Say what llama.cpp would abort on, refuse or silently misplace in these rows; None when they are sound."""
        cells, n_vocab, total, outputs, last = self._cells, self._n_vocab, 0, 0, -1
        for rows in planned:
            slot, tokens = rows.slot, rows.tokens
            count = len(tokens)
            if not last < slot < len(cells):
                return f"slot {slot} after slot {last}"
            if count == 1:
                sound = 0 <= tokens[0] < n_vocab
            else:
                sound = count > 0 and min(tokens) >= 0 and max(tokens) < n_vocab
            if not sound:
                return f"tokens of slot {slot} are missing or not in the vocabulary"
            # An empty sequence would take any start position without complaint.
            if rows.start != cells[slot]:
                return f"slot {slot} starts at {rows.start} but holds {cells[slot]} cells"
            if rows.outputs and (self._samplers[slot] is None or rows.outputs > count):
                return f"slot {slot} has no sampler, or {rows.outputs} outputs of {count} rows"
            last = slot
            total += count
            outputs += rows.outputs
        # More outputs than the context was made for abort the process.
        if not 0 < total <= self._batch.n_rows or outputs > self._most_outputs:
            return f"{total} rows with {outputs} outputs"
        return None

    def _resync(self, rows: Rows) -> int:
        """Count the cells that a failed call left in a planned slot.

        An output that was computed but never sampled is lost: its cell, and those of a draft, go too, so that it
        can be computed again.
        """
        slot = rows.slot
        held = self._library.memory_seq_pos_max(self._memory, slot) + 1
        self._cells[slot] = held
        sampled = rows.start + len(rows.tokens) - rows.outputs
        if held > sampled:
            if not self._library.memory_seq_rm(self._memory, slot, sampled, -1):
                self._library.memory_seq_rm(self._memory, slot, -1, -1)
            self._cells[slot] = self._library.memory_seq_pos_max(self._memory, slot) + 1
        return self._cells[slot]

    def _sample(self, rows: Rows, index: int) -> list[Sample]:
        """Draw from the rows of the batch from `index` on, until a token is not the draft's; drop cells behind that.

        Every draw changes the chain, so none is made for a row whose token did not come true.
        """
        slot, tokens, outputs = rows.slot, rows.tokens, rows.outputs
        draw, sampler = self._outputs.draw, self._samplers[slot]
        first = rows.start + len(tokens) - outputs
        samples = [draw(sampler, index, first, tokens[-outputs])]
        while (taken := len(samples)) < outputs and samples[-1].token == tokens[taken - outputs]:
            samples.append(draw(sampler, index + taken, first + taken, samples[-1].token))
        if taken < outputs:
            self.truncate(slot, self._cells[slot] + taken - outputs)
        return samples

    def warm_up(self, *, deep: bool | None = None) -> int:
        """Decode once and forget it, so that the first request waits for no page or pool.

        On a GPU (or with `deep`) at full depth: its memory pools then reach their peak while a failure is harmless.
        Returns the depth in cells. Raises `ConfigError` when it fails.
        """
        warming = WarmUp(
            library=self._library,
            context=self._context,
            batch=self._batch,
            slots=len(self._cells),
            outputs=self._most_outputs,
            unified=self._unified,
            token=next(iter(self._vocab.eog), 0),
        )
        gpu = self._library.supports_gpu_offload()
        if self._draft is not None:
            self._draft.warm_up(deep=gpu if deep is None else deep)
        return warming.run(deep=gpu if deep is None else deep)
