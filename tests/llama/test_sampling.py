"""Every sampling parameter reaches llama.cpp and does what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from server.core.errors import GenerationFailed
from server.core.request import GenerationRequest, SamplingParams
from server.llama.dry import DryPrototypes, DrySettings
from server.llama.logprobs import LogprobReader
from server.llama.sampling import make_sampler
from tests.llama.driving import GREEDY, prompt_of
from tests.models import ModelSpec

pytestmark = pytest.mark.native

PROMPT = prompt_of(7, 20)
ALWAYS = {"temperature": 1.0}


def stages(driver, **params) -> tuple[str, ...]:
    request = GenerationRequest("r", PROMPT, 10, SamplingParams(**params))
    sampler = make_sampler(driver.backend._source, request)
    sampler.free()
    return sampler.stages


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"temperature": 0.0}, ("greedy",)),
        ({"temperature": 1e-30}, ("greedy",)),
        ({}, ("dist",)),
        ({"temperature": 0.7}, ("temperature", "dist")),
        ({"dynatemp_range": 0.2}, ("temperature", "dist")),
        ({"top_k": 5}, ("top_k", "dist")),
        ({"top_k": 10**6}, ("dist",)),
        ({"top_p": 0.5}, ("top_p", "dist")),
        ({"min_p": 0.1}, ("min_p", "dist")),
        ({"typical_p": 0.5}, ("typical_p", "dist")),
        ({"top_n_sigma": 1.0}, ("top_n_sigma", "dist")),
        ({"xtc_probability": 0.5}, ("xtc", "dist")),
        ({"repeat_penalty": 1.1}, ("penalties", "dist")),
        ({"presence_penalty": 0.5}, ("penalties", "dist")),
        ({"frequency_penalty": 0.5, "temperature": 0.0}, ("penalties", "greedy")),
        ({"frequency_penalty": 0.5, "repeat_last_n": 0}, ("dist",)),
        ({"dry_multiplier": 0.8}, ("dry", "dist")),
        ({"mirostat": 1}, ("mirostat",)),
        ({"mirostat": 2, "top_k": 5, "temperature": 0.5}, ("temperature", "mirostat")),
        ({"mirostat": 2, "temperature": 0.0}, ("greedy",)),
        ({"logit_bias": {5: 1.0}, "temperature": 0.0}, ("logit_bias", "greedy")),
        (
            {
                "logit_bias": {5: 1.0},
                "repeat_penalty": 1.1,
                "dry_multiplier": 0.5,
                "top_n_sigma": 1.0,
                "top_k": 40,
                "typical_p": 0.9,
                "top_p": 0.9,
                "min_p": 0.05,
                "xtc_probability": 0.1,
                "temperature": 0.8,
            },
            (
                *("logit_bias", "penalties", "dry", "top_n_sigma", "top_k", "typical_p"),
                *("top_p", "min_p", "xtc", "temperature", "dist"),
            ),
        ),
    ],
)
def test_chain_has_only_what_is_asked_for_in_order(make_driver, params, expected):
    assert stages(make_driver(), **params) == expected


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 1},
        {"top_p": 0.0},
        {"min_p": 1.0},
        {"top_n_sigma": 1e-6},
        {"temperature": 1e-12},
        {"temperature": 0.01, "dynatemp_range": 0.005},
        {"mirostat": 1, "mirostat_tau": 0.0, "mirostat_eta": 1.0},
        {"mirostat": 2, "mirostat_tau": 0.0, "mirostat_eta": 1.0},
    ],
)
def test_strictest_setting_of_each_filter_is_greedy(make_driver, params):
    driver = make_driver()
    wanted = driver.alone(PROMPT, 1)
    sampling = SamplingParams(**(ALWAYS | params))
    said = [driver.alone(PROMPT, 1, sampling=sampling) for _ in range(5)]
    if "mirostat" in params:
        # Mirostat adapts: it starts at twice tau and needs tokens to settle, so only "it draws".
        assert all(len(tokens) == 1 for tokens in said)
    else:
        assert said == [wanted] * 5


def test_typical_and_xtc_change_what_is_drawn(make_driver):
    driver = make_driver()
    plain = driver.alone(PROMPT, 1)
    xtc = SamplingParams(temperature=1.0, xtc_probability=1.0, xtc_threshold=0.0, seed=1)
    # Threshold 0 removes every token above it but the least likely one.
    assert driver.alone(PROMPT, 1, sampling=xtc) != plain
    driver.start(0, PROMPT)
    driver.step()
    probabilities = np.exp(driver.logits(len(PROMPT) - 1).astype(np.float64))
    probabilities /= probabilities.sum()
    driver.cancel(0)
    surprise = np.abs(-np.log(probabilities) + (probabilities * np.log(probabilities)).sum())
    typical = SamplingParams(temperature=1.0, typical_p=1e-9)
    assert driver.alone(PROMPT, 1, sampling=typical) == [int(surprise.argmin())]


def test_penalties_see_the_prompt_and_the_answer(make_driver):
    driver = make_driver()
    (favourite,) = driver.alone(PROMPT, 1)
    primed = [favourite, *PROMPT]
    assert favourite not in PROMPT
    for params in (
        {"presence_penalty": 1000.0},
        {"frequency_penalty": 1000.0},
        {"repeat_penalty": 1000.0, "repeat_last_n": -1},
    ):
        sampling = SamplingParams(temperature=0.0, **params)
        assert favourite not in driver.alone([favourite, *PROMPT], 1, sampling=sampling)
        said = driver.alone(primed, 30, sampling=sampling)
        assert len(set(said)) == 30, params


def test_penalty_window_ends_where_repeat_last_n_says(make_driver):
    driver = make_driver()
    said = driver.alone(
        PROMPT,
        30,
        sampling=SamplingParams(temperature=0.0, presence_penalty=1000.0, repeat_last_n=2),
    )
    assert all(len(set(said[i : i + 3])) == 3 for i in range(28))


def test_dry_forbids_continuing_a_repetition(make_driver):
    # The tail repeats; what came after it the first time is what DRY punishes.
    driver = make_driver()
    prompt = [*PROMPT, 65, 66, 67]
    (follower,) = driver.alone(prompt, 1)
    repeated = [65, 66, 67, follower, *prompt]
    sampling = SamplingParams(
        temperature=0.0, logit_bias={follower: 50.0}, dry_sequence_breakers=()
    )
    assert driver.alone(repeated, 1, sampling=sampling) == [follower]
    dry = SamplingParams(
        temperature=0.0,
        logit_bias={follower: 50.0},
        dry_multiplier=100.0,
        dry_sequence_breakers=(),
    )
    assert driver.alone(repeated, 1, sampling=dry) != [follower]


def test_dry_samplers_of_one_kind_search_the_vocabulary_once(make_driver):
    prototypes = make_driver().backend._source.dry
    searched: list[DrySettings] = []
    search = DryPrototypes._init

    class Counting(DryPrototypes):
        def _init(self, settings):
            searched.append(settings)
            return search(self, settings)

    counting = Counting(prototypes.library, prototypes.vocab)
    kinds = [DrySettings(0.8, 1.75, 2, 64, (f"{i}",)) for i in range(9)]
    for settings in [kinds[0]] * 5 + kinds:
        prototypes.library.sampler_free(counting.make(settings))
    assert searched == kinds
    # The ninth displaced the one that was used longest ago.
    prototypes.library.sampler_free(counting.make(kinds[0]))
    assert searched == [*kinds, kinds[0]]
    counting.free()
    counting.free()


def test_clones_remember_on_their_own(make_driver):
    driver = make_driver()
    dry = SamplingParams(temperature=0.0, dry_multiplier=100.0, dry_allowed_length=1)
    alone = driver.alone(PROMPT, 20, sampling=dry)
    first, second = (driver.start(slot, PROMPT, dry) for slot in (0, 1))
    driver.run(20)
    assert first.said == second.said == alone


def test_same_seed_draws_the_same_and_none_draws_afresh(make_driver):
    driver = make_driver()

    def draw(seed: int | None) -> list[int]:
        return driver.alone(PROMPT, 20, sampling=SamplingParams(seed=seed))

    for seed in (0, 1, 2**32 - 1):
        assert draw(seed) == draw(seed)
    assert draw(0) != draw(1)
    assert draw(None) != draw(None)


def test_logit_bias_forbids_and_forces(make_driver):
    driver = make_driver()
    (favourite,) = driver.alone(PROMPT, 1)
    forbid = SamplingParams(temperature=0.0, logit_bias={favourite: -math.inf})
    assert driver.alone(PROMPT, 1, sampling=forbid) != [favourite]
    force = SamplingParams(temperature=1.0, logit_bias={200: 1000.0})
    assert driver.alone(PROMPT, 3, sampling=force) == [200, 200, 200]


def test_ignore_eos_never_ends(make_driver):
    driver = make_driver(ModelSpec(script=(b"Hi",)))
    eog = driver.backend.tokenizer.eog
    assert driver.alone([1, 10], 2)[-1] in eog
    assert not eog.intersection(driver.alone([1, 10], 40, ignore_eos=True))


@pytest.mark.parametrize(
    "params",
    [
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {10**6: 1.0}},
        {"logit_bias": {1: math.nan}},
        {"logit_bias": {1: math.inf}},
        {"repeat_penalty": 0.0},
        {"temperature": math.nan},
        {"top_p": math.inf},
    ],
)
def test_values_that_would_draw_from_nan_are_refused(make_driver, params):
    with pytest.raises(ValueError, match=r"logit_bias|must be"):
        stages(make_driver(), **params)


def test_everything_forbidden_fails_this_request_alone(make_driver):
    driver = make_driver()
    n_vocab = driver.backend.tokenizer.n_vocab
    nothing = dict.fromkeys(range(n_vocab), -math.inf)
    for temperature in (0.0, 1.0):
        sampling = SamplingParams(temperature=temperature, logit_bias=nothing)
        driver.start(0, PROMPT, sampling)
        neighbour = driver.start(1, PROMPT)
        driver.step()
        (sample,) = driver.running[0].samples
        assert isinstance(sample.error, GenerationFailed)
        assert "forbidden" in sample.error.message
        assert len(neighbour.said) == 1
        driver.cancel(0)
        driver.cancel(1)


def test_nan_logits_fail_the_request(make_driver):
    driver = make_driver(ModelSpec(nan_logits=True))
    for sampling in (GREEDY, SamplingParams(), SamplingParams(top_k=5, min_p=0.1, mirostat=2)):
        driver.start(0, PROMPT, sampling)
        driver.step()
        (sample,) = driver.running[0].samples
        assert isinstance(sample.error, GenerationFailed)
        assert "NaN" in sample.error.message


@pytest.mark.parametrize("top", [0, 1, 5, 10_000])
def test_logprobs_are_the_models_own_distribution(make_driver, top):
    driver = make_driver()
    for sampling in (GREEDY, SamplingParams(temperature=5.0, top_k=3, seed=3)):
        driver.start(0, PROMPT, sampling, logprobs=top)
        driver.step()
        (sample,) = driver.running[0].samples
        assert sample.logprobs is not None
        logits = driver.logits(len(PROMPT) - 1).astype(np.float64)
        expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        assert sample.logprobs.token_id == sample.token
        assert sample.logprobs.logprob == pytest.approx(expected[sample.token], abs=1e-4)
        order = np.argsort(-expected, kind="stable")[:top]
        assert [entry.token_id for entry in sample.logprobs.top] == list(order)
        listed = [entry.logprob for entry in sample.logprobs.top]
        assert listed == pytest.approx(list(expected[order]), abs=1e-4)
        assert sum(math.exp(value) for value in listed) <= 1 + 1e-6
        driver.cancel(0)


def test_logprobs_of_huge_logits_do_not_overflow():
    logits = np.array([1000.0, 999.0, -1000.0], dtype=np.float32)
    found = LogprobReader(len(logits)).read(logits, 1, 3)
    assert [entry.token_id for entry in found.top] == [0, 1, 2]
    assert found.logprob == pytest.approx(-1 - math.log(1 + math.exp(-1)))
    assert found.top[2].logprob == pytest.approx(-2000, abs=1)


def test_ties_are_told_by_id():
    found = LogprobReader(50).read(np.zeros(50, dtype=np.float32), 7, 50)
    assert [entry.token_id for entry in found.top] == list(range(50))


def test_no_logprobs_unless_asked(make_driver):
    driver = make_driver()
    driver.start(0, PROMPT)
    driver.step()
    assert driver.running[0].samples[0].logprobs is None
