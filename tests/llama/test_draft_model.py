"""The draft model's own context: what it foresees, what its slots hold, and which files are refused."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.core.errors import ConfigError, ModelFileError
from server.engine.interface import DraftInfo
from server.engine.plan import DecodeCode, Rows
from server.llama.draft import DraftModel
from server.llama.loading import load_backend
from server.llama.params import DraftParams, LlamaParams
from tests.llama.conftest import SCRIPT, SCRIPTED, layouts
from tests.llama.driving import prompt_of
from tests.models import ModelSpec, follow, vocabulary

pytestmark = pytest.mark.native

PROMPT = prompt_of(1, 20)
KNOWN = len(vocabulary(SCRIPTED).texts)


@pytest.fixture
def make_draft(make_driver, models):
    """Load a main model with a draft model; return the latter."""

    def make(
        draft: ModelSpec = SCRIPTED, main: ModelSpec = SCRIPTED, draft_params: Any = None, **params
    ):
        chosen = DraftParams(models.path(draft), **(draft_params or {}))
        wanted: dict[str, Any] = {"draft_rows": 8, "n_batch": 64, "n_ubatch": 64}
        driver = make_driver(main, draft=chosen, **(wanted | params))
        made = driver.backend._draft
        assert isinstance(made, DraftModel)
        assert driver.backend.info.draft == made.info
        return made

    return make


def native_cells(draft: DraftModel, slot: int) -> int:
    return draft._library.memory_seq_pos_max(draft._memory, slot) + 1


class Failing:
    """The library, but decode calls return `code`; they are carried out before, if `late`."""

    def __init__(self, draft: DraftModel, code: int, *, late: bool) -> None:
        self._draft, self._real, self._code, self._late = draft, draft._library, code, late

    def __enter__(self) -> None:
        self._draft._library = self  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        self._draft._library = self._real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def decode(self, *arguments: Any) -> int:
        if self._late:
            assert self._real.decode(*arguments) == 0
        return self._code


@layouts
def test_it_says_what_comes_next_in_several_slots_at_once(make_draft, layout):
    draft = make_draft(draft_params=layout)
    prompts = {0: PROMPT, 2: prompt_of(2, 33)}
    rows = [Rows(slot, 0, tokens, outputs=1) for slot, tokens in prompts.items()]
    said: dict[int, list[int]] = {0: [], 2: []}
    for _ in range(5):
        foreseen = draft.foresee(rows)
        assert foreseen.code is DecodeCode.OK
        for row, token in zip(rows, foreseen.tokens, strict=True):
            said[row.slot].append(token)
        rows = [
            Rows(slot, len(prompts[slot]) + len(said[slot]) - 1, said[slot][-1:], outputs=1)
            for slot in prompts
        ]
    assert said == {slot: follow(SCRIPTED, prompts[slot][-1], 5) for slot in prompts}
    assert [draft.cells(slot) for slot in range(4)] == [24, 0, 37, 0]


@layouts
def test_what_did_not_come_true_goes_before_the_next_call(make_draft, layout):
    draft = make_draft(draft_params=layout)
    draft.foresee([Rows(1, 0, PROMPT, outputs=0)])
    (token,) = draft.foresee([Rows(1, 12, [5, 6], outputs=1)]).tokens
    assert token == follow(SCRIPTED, 6, 1)[0]
    assert draft.cells(1) == native_cells(draft, 1) == 14


@layouts
@pytest.mark.parametrize("seed", range(4))
def test_its_count_is_that_of_llama_cpp_whatever_happens(make_draft, layout, seed):
    draft, rng = make_draft(draft_params=layout), random.Random(seed)
    for _ in range(60):
        planned = []
        for slot in sorted(rng.sample(range(4), rng.randint(1, 4))):
            start = rng.choice([0, draft.cells(slot), rng.randint(0, draft.cells(slot))])
            count = min(rng.randint(1, 16), 250 - start)
            if count > 0:
                tokens = [rng.randrange(KNOWN) for _ in range(count)]
                planned.append(Rows(slot, start, tokens, outputs=rng.randint(0, 1)))
        if rng.random() < 0.2:
            with Failing(draft, rng.choice([1, 2, -1, -3]), late=rng.random() < 0.5):
                assert draft.foresee(planned).code is not DecodeCode.OK
            assert all(draft.cells(row.slot) == 0 for row in planned)
        else:
            foreseen = draft.foresee(planned)
            assert foreseen.code is DecodeCode.OK
            assert len(foreseen.tokens) == sum(row.outputs for row in planned)
        assert [draft.cells(slot) for slot in range(4)] == [
            native_cells(draft, slot) for slot in range(4)
        ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([Rows(0, 5, [1], 1)], "starts at 5 of 4 cells"),
        ([Rows(0, -1, [1], 1)], "starts at -1"),
        ([Rows(4, 0, [1], 1)], "slot 4"),
        ([Rows(1, 0, [1], 1), Rows(0, 4, [1], 1)], "slot 0 after slot 1"),
        ([Rows(0, 4, [], 1)], "missing"),
        ([Rows(0, 4, [KNOWN], 1)], "not in both"),
        ([Rows(0, 4, [-1], 1)], "not in both"),
        ([Rows(0, 4, [1] * 65, 1)], "65 rows"),
        ([Rows(0, 4, [1, 2], 2)], "slot 0"),
        ([], "0 rows"),
    ],
)
def test_what_llama_cpp_would_abort_on_is_refused_and_changes_nothing(make_draft, rows, message):
    draft = make_draft()
    draft.foresee([Rows(0, 0, [1, 2, 3, 4], outputs=0)])
    foreseen = draft.foresee(rows)
    assert foreseen.code is DecodeCode.INVALID
    assert message in foreseen.reason
    assert draft.cells(0) == native_cells(draft, 0) == 4


@pytest.mark.parametrize(("main", "draft"), [(0, 16), (16, 0)])
def test_only_ids_of_both_vocabularies_are_foreseen(make_draft, main, draft):
    """Sizes differ by padding; a scripted model does say the tokens that no text has."""
    padded = replace(SCRIPTED, padding=draft)
    model = make_draft(padded, replace(SCRIPTED, padding=main))
    assert model.info == DraftInfo(n_vocab=KNOWN, rows=64)
    said = {
        token
        for last in range(KNOWN)
        for token in model.foresee([Rows(0, 0, [last], outputs=1)]).tokens
    }
    assert max(said) < KNOWN
    if draft:
        assert any(follow(padded, last, 1)[0] >= KNOWN for last in range(KNOWN))


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        (replace(SCRIPTED, padding=129), "vocabularies of"),
        (replace(SCRIPTED, script=tuple(reversed(SCRIPT))), "do not have the same tokens"),
        (replace(SCRIPTED, extra_pieces=(b"other",)), "do not have the same tokens"),
    ],
)
def test_another_vocabulary_is_refused_with_both_names(make_draft, models, draft, message):
    with pytest.raises(ConfigError, match=message) as refused:
        make_draft(draft)
    assert str(models.path(SCRIPTED)) in refused.value.message
    assert str(models.path(draft)) in refused.value.message


def test_a_file_that_is_none_is_refused(make_driver, models, tmp_path):
    path = tmp_path / "nothing.gguf"
    path.write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match="nothing"):
        make_driver(SCRIPTED, draft=DraftParams(path), draft_rows=8)


def test_memories_that_cannot_forget_take_no_part(make_driver, models):
    backend = make_driver(SCRIPTED).backend
    params = LlamaParams(
        models.path(SCRIPTED), draft_rows=8, draft=DraftParams(models.path(SCRIPTED))
    )
    recurrent = replace(backend._library, model_is_recurrent=lambda _model: True)
    with pytest.raises(ConfigError, match="a recurrent model cannot be the draft model"):
        DraftModel.load(recurrent, params, backend.tokenizer, lambda _fraction: None)
    backend._info = replace(backend.info, partial_removal=False)
    with pytest.raises(ConfigError, match="cannot have a draft model"):
        backend.load_draft(params, lambda _fraction: None)
    assert backend.info.draft is None


def test_its_parameters_are_its_own_and_the_main_ones():
    draft = DraftParams(Path("small.gguf"), "all", "q8_0", "on", "split")
    main = LlamaParams(
        *(Path("big.gguf"), 3, 512),
        kv_cells=1000,
        n_gpu_layers=7,
        adapter=Path("lora.gguf"),
        rope_scaling="yarn",
        n_batch=256,
        n_ubatch=64,
        draft_rows=8,
        threads=2,
        mmap=False,
        draft=draft,
    )
    assert main.drafting() == LlamaParams(
        *(Path("small.gguf"), 3, 512),
        n_gpu_layers="all",
        kv_type="q8_0",
        flash_attention="on",
        layout="split",
        n_batch=64,
        n_ubatch=64,
        threads=2,
        mmap=False,
    )
    assert replace(main, draft=None).drafting() is None


def test_it_is_loaded_as_the_main_one_says(make_draft):
    draft = make_draft(draft_params={"layout": "split", "kv_type": "q8_0"}, slots=3, n_ctx=512)
    library, context = draft._library, draft._context
    assert library.n_seq_max(context) == 3
    assert library.n_ctx_seq(context) == 512
    assert library.n_ubatch(context) == library.n_batch(context) == draft.info.rows == 64


def test_both_are_warmed_up_and_empty(make_draft):
    draft = make_draft(warmup=True)
    assert [native_cells(draft, slot) for slot in range(4)] == [0] * 4


@layouts
@pytest.mark.parametrize(("layers", "deep"), [(0, False), ("all", True)])
def test_it_is_warmed_up_at_full_depth_where_it_computes_on_a_card(
    make_draft, layout, layers, deep
):
    draft = make_draft(draft_params=layout | {"n_gpu_layers": layers})
    assert (draft.warm_up(deep=True) > 64) == deep
    assert draft.warm_up(deep=False) <= 64
    assert [native_cells(draft, slot) for slot in range(4)] == [0] * 4


def test_progress_never_falls_and_its_exception_stops_the_second_load_too(models):
    path = models.path(SCRIPTED)
    params = LlamaParams(path, draft=DraftParams(path), draft_rows=8, warmup=False)
    seen: list[float] = []
    load_backend(params)(seen.append).shutdown()
    assert seen == sorted(seen)
    begun = seen.index(1.0) + 1  # the first model is loaded

    def stop(_fraction: float) -> None:
        seen.append(1.0)
        if len(seen) > begun:
            raise KeyboardInterrupt

    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        load_backend(params)(stop)


def test_it_ends_with_the_main_model(make_draft):
    draft = make_draft()
    real, freed = draft._library.model_free, []

    def note(model: int) -> None:
        freed.append(model)
        real(model)

    draft._loaded = replace(draft._loaded, library=replace(draft._library, model_free=note))
    draft.free()
    draft.free()
    assert freed == [draft._loaded.model]
