"""The demo model's network; these tests need the training dependencies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

NEEDS = "a training dependency; see scripts/demo_model/requirements.in"
torch = pytest.importorskip("torch", reason=f"torch is {NEEDS}")
pytest.importorskip("tokenizers", reason=f"tokenizers is {NEEDS}")
gguf = pytest.importorskip("gguf", reason=f"gguf is {NEEDS}")

if TYPE_CHECKING:
    from torch import Tensor

    from demo_model.model import DemoModel


NAME = 7  # the id that plays the word "name"


def fresh(vocab: int = 96) -> DemoModel:
    from demo_model.induction import install
    from demo_model.model import DemoModel, ModelShape

    torch.manual_seed(0)
    model = DemoModel(ModelShape(vocab))
    install(model, [f"w{index}" for index in range(vocab)], mark_tokens=(NAME, 6))
    return model


def third_layer(model: DemoModel, ids: Tensor, head: int) -> tuple[Tensor, Tensor]:
    """What ``head`` of the third layer attends to, and the stream after that layer."""
    from demo_model.model import rope_tables, rotate

    rows, time = ids.shape
    with torch.no_grad():
        cos, sin = rope_tables(model.shape, torch.arange(time))
        x = model.token_embd(ids)
        for block in model.blk[:2]:
            x = block.finish(x, block.mix(x, cos, sin, None, None))
        third = model.blk[2]
        h = third.attn_norm(x)
        q = third.attn_q_norm(third.attn_q(h).view(rows, time, 4, 64))[:, :, head]
        k = third.attn_k_norm(third.attn_k(h).view(rows, time, 2, 64))[:, :, head // 2]
        scores = rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(-1, -2) / 8
        future = torch.ones(time, time, dtype=torch.bool).triu(1)
        attention = scores.masked_fill(future, -1e9).softmax(-1)
        return attention, third.finish(x, third.mix(x, cos, sin, None, None))


def test_a_fresh_network_finds_what_followed_the_last_time():
    model, half = fresh(), 40
    ids = torch.stack([8 + torch.randperm(88)[:half] for _ in range(8)]).repeat(1, 2)
    attention, _ = third_layer(model, ids, head=3)
    at = torch.arange(half + 5, 2 * half)
    assert attention[:, at, at - half + 1].mean() > 0.5


def test_a_fresh_network_fetches_the_name_that_stood_before_a_word():
    from demo_model.induction import share_out

    model = fresh()
    shuffled = torch.stack([8 + torch.randperm(88) for _ in range(16)])
    named, words = shuffled[:, :2], shuffled[:, 2:22].view(16, 2, 10)
    rest = shuffled[:, 22:32]
    opening = torch.tensor([[NAME, 1, 2]]).repeat(16, 1)
    tools = [
        torch.cat([opening, named[:, index, None], words[:, index]], dim=1) for index in range(2)
    ]
    asked = torch.arange(16) % 2  # which tool's word stands in the question
    word = words[torch.arange(16), asked, 4][:, None]
    _, stream = third_layer(model, torch.cat([*tools, rest, word], dim=1), head=0)
    axes = share_out(model.shape.width)
    carried = model.blk[1].attn_v.weight[:44].detach() @ model.token_embd(named).transpose(1, 2)
    fetched = torch.einsum("bd,bdn->bn", stream[:, -1, axes.fetched].detach(), carried)
    assert (fetched.argmax(-1) == asked).float().mean() > 0.9


def test_short_and_long_rows_are_attended_alike():
    from demo_model import model as network

    q, k, v = (torch.randn(2, 4, 33, 64) for _ in range(3))
    short = network.attend(q, k, v, None)
    mask = torch.ones(33, 33, dtype=torch.bool).tril()
    assert torch.allclose(short, network.attend(q, k, v, mask), atol=1e-5)


def test_states_that_are_kept_are_the_same():
    model = fresh()
    ids = torch.randint(0, 96, (3, 16))
    keep = torch.rand(3, 16) < 0.4
    with torch.no_grad():
        assert torch.allclose(model(ids)[keep], model(ids, keep=keep), atol=1e-5)


def test_batched_generation_equals_one_by_one():
    from demo_model.generate import answer_all
    from demo_model.tokenizer import train_tokenizer

    texts = ["What is a slot?", "你好", "Hi <x> 12 {}" * 5]
    tokenizer = train_tokenizer(texts * 5, 320, 2)
    model = fresh(tokenizer.get_vocab_size())
    alone = [answer_all(model, tokenizer, [text], most=12)[0] for text in texts]
    assert answer_all(model, tokenizer, texts, most=12) == alone


def test_the_tokenizer_takes_any_text():
    from demo_model.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["a slot is a place", "槽位"] * 5, 320, 2)
    for text in ("naïve 😀\r\n\n  x", '<think>\n{"a": 1}</think>', "日本語\t\x00"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_export_names_every_tensor_of_the_architecture(tmp_path: Path):
    from demo_model.export import export
    from demo_model.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["a slot is a place"] * 5, 320, 2)
    model = fresh(tokenizer.get_vocab_size())
    path = tmp_path / "model.gguf"
    export(model, tokenizer, path)
    reader = gguf.GGUFReader(path)
    names = {tensor.name for tensor in reader.tensors}
    assert {"token_embd.weight", "output_norm.weight", "blk.4.attn_q_norm.weight"} <= names
    assert len(names) == 2 + 11 * model.shape.layers
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
