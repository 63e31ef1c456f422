from pathlib import Path

import pytest

from server.catalog.catalogue_models import builtin_catalogue
from server.catalog.download_choice import size_text
from server.catalog.references import ModelRef, parse_reference
from server.core.errors import ConfigError

CATALOGUE = builtin_catalogue()
DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs" / "models.md"
REQUIRED = [
    *("qwen3:32b", "qwen3:30b-a3b", "qwen3:14b", "qwen3:8b", "qwen3:4b", "qwen3:1.7b"),
    *("qwen3:0.6b", "qwen2:7b", "qwen2.5:7b", "phi-3"),
]


@pytest.mark.parametrize(
    ("text", "kind", "fields"),
    [
        ("qwen3:32b", "catalogue", {"text": "qwen3:32b"}),
        ("Qwen3:32B", "catalogue", {"text": "qwen3:32b"}),
        ("qwen3:32b-q4_k_m", "catalogue", {"text": "qwen3:32b", "quant": "Q4_K_M"}),
        ("qwen3:32b-Q4_K_M", "catalogue", {"text": "qwen3:32b", "quant": "Q4_K_M"}),
        ("qwen3:30b-a3b", "catalogue", {"text": "qwen3:30b-a3b"}),
        ("qwen3:30b-a3b-iq4_xs", "catalogue", {"text": "qwen3:30b-a3b", "quant": "IQ4_XS"}),
        ("qwen2:7b-fp16", "catalogue", {"text": "qwen2:7b", "quant": "F16"}),
        ("qwen2.5:7b-instruct-q8_0", "catalogue", {"text": "qwen2.5:7b", "quant": "Q8_0"}),
        ("phi-3", "catalogue", {"text": "phi-3"}),
        ("phi-3:q4", "catalogue", {"text": "phi-3", "quant": "Q4"}),
        ("phi3:mini", "catalogue", {"text": "phi-3"}),
        ("qwen3", "catalogue", {"text": "qwen3:8b"}),
        ("hf:o/r", "hub", {"repo": "o/r"}),
        ("hf:o/r:q4_k_m", "hub", {"repo": "o/r", "quant": "Q4_K_M"}),
        ("hf:o/r:UD-Q4_K_XL", "hub", {"repo": "o/r", "quant": "UD-Q4_K_XL"}),
        ("hf:o/r@v1.0:Q8_0", "hub", {"repo": "o/r", "revision": "v1.0", "quant": "Q8_0"}),
        ("hf:o/r/a/b-Q8_0.gguf", "hub", {"repo": "o/r", "file": "a/b-Q8_0.gguf"}),
        ("hf.co/o/r:Q8_0", "hub", {"repo": "o/r", "quant": "Q8_0"}),
        ("https://huggingface.co/o/r/", "hub", {"repo": "o/r"}),
        (
            "https://huggingface.co/o/r/resolve/main/a/b-Q8_0.gguf?download=true",
            "hub",
            {"repo": "o/r", "file": "a/b-Q8_0.gguf"},
        ),
        (
            "https://huggingface.co/o/r/blob/v2/b.gguf",
            "hub",
            {"repo": "o/r", "file": "b.gguf", "revision": "v2"},
        ),
        (
            "https://huggingface.co/o/r/resolve/main/a%20b-Q8_0.gguf",
            "hub",
            {"repo": "o/r", "file": "a b-Q8_0.gguf"},
        ),
        ("hf:o/r/B.GGUF", "hub", {"repo": "o/r", "file": "B.GGUF"}),
        ("models/demo.gguf", "file", {"path": Path("models/demo.gguf")}),
        ("./x", "file", {"path": Path("x")}),
        ("/srv/models/x.GGUF", "file", {"path": Path("/srv/models/x.GGUF")}),
        ("~/m.gguf", "file", {"path": Path.home() / "m.gguf"}),
    ],
)
def test_what_may_be_written(text, kind, fields) -> None:
    ref = CATALOGUE.parse(text)

    assert ref.kind == kind
    expected = ModelRef(kind, **{"text": text, **fields})
    assert ref == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("qwen3:32", "did you mean qwen3:32b?"),
        ("qwen3:33b", "did you mean qwen3:32b?"),
        ("qwen3:32b-q4km", "did you mean qwen3:32b-q4_k_m?"),
        ("qwen:32b-q4_k_m", "did you mean qwen3:32b-q4_k_m?"),
        ("gwen3:0.6b", "did you mean qwen3:0.6b?"),
        ("phi3:mini-q4_k", None),
        ("gemma", "It has phi-3, "),
        ("", "empty"),
        ("hf:repo", "hf:owner/repo"),
        ("https://example.com/m.gguf", "is not on the hub"),
        ("hf:o/../r", "is not a hub reference"),
        ("hf:o/r/../../x.gguf", "is not a hub reference"),
        ("hf:o/r/x.safetensors", "is not a hub reference"),
    ],
)
def test_what_is_refused_and_what_is_suggested(text, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    if message is None:
        assert CATALOGUE.parse(text).quant == "Q4_K"
        return
    with pytest.raises(ConfigError) as caught:
        CATALOGUE.parse(text)

    assert message in caught.value.message


@pytest.mark.parametrize(
    "text", ["qwen3:32b", "qwen3:32b-q4_k_m", "hf:o/r@x:Q8_0", "hf:o/r/a/b.gguf", "phi-3-q4"]
)
def test_a_reference_says_itself_again(text) -> None:
    assert str(CATALOGUE.parse(text)) == text


def test_a_file_that_exists_needs_no_suffix(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights").write_bytes(b"")

    assert parse_reference("weights", known=()).path == Path("weights")


def test_the_catalogue_has_what_the_project_promises() -> None:
    assert {model.name for model in CATALOGUE.models} >= set(REQUIRED)
    for model in CATALOGUE.models:
        assert model.sources
        assert model.sources[0].sizes
        for source in model.sources:
            assert source.repo.lower().endswith("gguf")


def test_sizes_are_those_of_the_bits_per_weight() -> None:
    bits = {"Q2_K": (2.6, 4.1), "Q4_K_M": (4.5, 5.7), "Q8_0": (8.4, 8.8), "BF16": (15.9, 16.2)}
    checked = 0
    for model in CATALOGUE.models:
        for source in model.sources:
            for quant in bits.keys() & source.sizes.keys():
                low, high = bits[quant]
                # The smallest models' embeddings are a large part, and counted twice in some.
                assert low <= 8 * source.sizes[quant] / model.n_params <= high * 1.05, model.name
                checked += 1
    assert checked > 15


def test_names_do_not_collide() -> None:
    names = [n for model in CATALOGUE.models for n in (model.name, *model.aliases)]

    assert len(names) == len(set(names))


def test_a_quantization_leads_to_the_repository_that_has_it() -> None:
    def repo(text: str) -> str | None:
        return CATALOGUE.locate(CATALOGUE.parse(text)).repo

    assert repo("qwen3:32b") == "Qwen/Qwen3-32B-GGUF"
    assert repo("qwen3:0.6b") == "Qwen/Qwen3-0.6B-GGUF"
    assert repo("qwen3:0.6b-q4_k_m") == "unsloth/Qwen3-0.6B-GGUF"
    assert repo("phi-3-q4_k_m") == "bartowski/Phi-3-mini-4k-instruct-GGUF"


def test_the_document_has_the_catalogue_as_it_is() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    for model in CATALOGUE.models:
        row = rows[model.name]
        assert model.sources[0].repo in row
        assert f"| {model.n_ctx_train} |" in row
        sizes = {q: size for source in model.sources for q, size in source.sizes.items()}
        assert f"| {size_text(sizes['Q4_K_M'])} |" in row
