from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.core.errors import EngineDead, InvalidRequest
from server.llama import cutting
from tests.models import CONTROL, MARKERS, ModelSpec, vocabulary

pytestmark = pytest.mark.native


@pytest.fixture
def vocab(make_driver):
    return make_driver().backend.tokenizer


TEXTS = ["", "hello world", "the  end\n\n\t", "你好, wörld 🎉", "a\0b", "\ufeff\u200b", "x" * 5000]


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_both_ways(vocab, text):
    tokens = vocab.encode(text)
    assert vocab.decode(tokens) == text.encode()
    assert b"".join(vocab.pieces[token] for token in tokens) == text.encode()


def test_merges_are_applied(vocab):
    assert len(vocab.encode("hello")) < 5
    assert vocab.n_vocab == len(vocabulary(ModelSpec()).texts)


def test_control_tokens_are_read_only_on_request_and_shown_only_on_request(vocab):
    text = "<|im_start|>user<|im_end|>"
    plain = vocab.encode(text)
    parsed = vocab.encode(text, parse_special=True)
    assert not set(plain) & set(vocab.control_tokens.values())
    assert parsed[0] == vocab.control_tokens["<|im_start|>"]
    assert parsed[-1] == vocab.control_tokens["<|im_end|>"]
    assert vocab.decode(plain) == vocab.decode(parsed, special=True) == text.encode()
    assert vocab.decode(parsed) == b"user"
    assert all(vocab.pieces[token] == b"" for token in vocab.control_tokens.values())


def test_markers_stand_for_text(vocab):
    assert tuple(vocab.control_tokens) == CONTROL
    assert tuple(vocab.marker_tokens) == MARKERS
    (think,) = vocab.encode("<think>", parse_special=True)
    assert think == vocab.marker_tokens["<think>"]
    assert vocab.pieces[think] == b"<think>"


@pytest.mark.parametrize("add_special", [False, True])
@pytest.mark.parametrize("parse_special", [False, True])
def test_long_texts_are_read_in_pieces_with_the_same_result(
    vocab, monkeypatch, add_special, parse_special
):
    rng = random.Random(5)
    parts = ["<|im_start|>", "<|im_end|>\n", "<think>", "</think>", "hello", " the", "x<|", "!\n\n"]
    texts = ["".join(rng.choices(parts, k=300)) for _ in range(20)]
    flags = {"add_special": add_special, "parse_special": parse_special}
    whole, given = [vocab.encode(text, **flags) for text in texts], []
    native = vocab._tokenize

    def watched(address, data, *rest):
        given.append(len(data))
        return native(address, data, *rest)

    monkeypatch.setattr(vocab, "_tokenize", watched)
    monkeypatch.setattr(cutting, "_SPAN", 40)
    assert [vocab.encode(text, **flags) for text in texts] == whole
    # llama.cpp's time grows with the square of what one call is given.
    assert max(given) < 400
    assert len(given) > 20 * 5


def test_end_tokens_and_names(vocab):
    assert vocab.eog == {vocab.control_tokens["<|im_end|>"], vocab.control_tokens["<|endoftext|>"]}
    assert vocab.eos_text == "<|im_end|>"
    assert vocab.bos_text == "<|endoftext|>"


def test_lone_surrogates_are_refused_by_name(vocab):
    with pytest.raises(InvalidRequest, match=r"U\+D83D"):
        vocab.encode("ok \ud83d")


@pytest.mark.parametrize("token", [-1, 10**6])
def test_ids_out_of_range_are_refused(vocab, token):
    with pytest.raises(InvalidRequest, match="out of range"):
        vocab.decode([1, token])


def test_threads_share_it(vocab):
    texts = [f"hello world {i} 你好 " * 50 for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(vocab.encode, texts)) == [vocab.encode(text) for text in texts]


def test_after_shutdown_text_is_refused_instead_of_read_from_freed_memory(make_driver):
    backend = make_driver().backend
    backend.shutdown()
    with pytest.raises(EngineDead, match="not loaded"):
        backend.tokenizer.encode("hello")


def test_shutdown_waits_for_a_thread_that_tokenizes(make_driver):
    backend = make_driver().backend
    entered, may_leave = threading.Event(), threading.Event()
    tokenize = backend.tokenizer._tokenize

    def slow(*arguments):
        entered.set()
        assert may_leave.wait(30)
        return tokenize(*arguments)

    backend.tokenizer._tokenize = slow
    with ThreadPoolExecutor(2) as pool:
        tokens = pool.submit(backend.tokenizer.encode, "hello")
        assert entered.wait(30)
        closed = pool.submit(backend.shutdown)
        with pytest.raises(TimeoutError):
            closed.result(timeout=0.05)
        may_leave.set()
        closed.result(timeout=30)
        assert tokens.result(timeout=30)
