"""Ollama's store and the hub client's cache, in the layouts that those programs write."""

import hashlib
import json
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download

from server.catalog.catalogue_models import builtin_catalogue
from server.catalog.library import Library
from server.core.errors import ConfigError
from tests.catalog.conftest import gguf
from tests.catalog.hub_downloads import Pulls
from tests.catalog.hub_server import HubServer

CATALOGUE = builtin_catalogue()
WEIGHTS = gguf()


class OllamaStore:
    """A store as Ollama lays it out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(
        self, name: str, quant: str = "Q4_K_M", data: bytes = WEIGHTS, size: int | None = None
    ) -> Path:
        config = json.dumps({"model_format": "gguf", "file_type": quant}).encode()
        weights = self.blob(data)
        layers = [
            {"mediaType": "application/vnd.ollama.image.license", "digest": self.blob(b"MIT")},
            {
                "mediaType": "application/vnd.ollama.image.model",
                "digest": weights,
                "size": size or len(data),
            },
        ]
        manifest = {"schemaVersion": 2, "config": {"digest": self.blob(config)}, "layers": layers}
        path = self.folder / "manifests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(manifest), encoding="utf-8")
        return self.folder / "blobs" / weights.replace(":", "-")

    def blob(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs").mkdir(parents=True, exist_ok=True)
        (self.folder / "blobs" / f"sha256-{digest}").write_bytes(data)
        return f"sha256:{digest}"


@pytest.fixture
def ollama(tmp_path) -> OllamaStore:
    return OllamaStore(tmp_path / "ollama")


def library(tmp_path, **stores) -> Library:
    return Library(tmp_path / "models", CATALOGUE, **stores)


@pytest.mark.parametrize(
    ("manifest", "quant", "found_as", "not_as"),
    [
        (
            "registry.ollama.ai/library/qwen3/32b",
            "Q4_K_M",
            ["qwen3:32b", "qwen3:32b-q4_k_m"],
            ["qwen3:32b-q8_0", "qwen3:8b", "hf:Qwen/Qwen3-32B-GGUF"],
        ),
        (
            "registry.ollama.ai/library/qwen3/8b-q8_0",
            "Q8_0",
            ["qwen3:8b", "qwen3:8b-q8_0"],
            ["qwen3:8b-q4_k_m"],
        ),
        (
            "registry.ollama.ai/library/qwen3/4b-instruct-2507-q8_0",
            "Q8_0",
            [],
            ["qwen3:4b", "qwen3:4b-q8_0"],
        ),
        (
            "registry.ollama.ai/library/phi3/mini-4k",
            "Q4_0",
            ["phi-3"],
            [],
        ),
        ("registry.ollama.ai/library/phi3/latest", "Q4_0", ["phi-3", "phi-3-q4_0"], ["qwen2:7b"]),
        (
            "hf.co/Qwen/Qwen3-8B-GGUF/Q6_K",
            "Q6_K",
            ["qwen3:8b", "hf:Qwen/Qwen3-8B-GGUF:Q6_K", "hf.co/Qwen/Qwen3-8B-GGUF"],
            ["qwen3:8b-q8_0", "hf:Qwen/Qwen3-8B-GGUF@main:Q6_K"],
        ),
    ],
)
def test_what_ollama_holds_is_used_in_place(
    tmp_path, ollama, manifest, quant, found_as, not_as
) -> None:
    path = ollama.put(manifest, quant)
    here = library(tmp_path, ollama=(ollama.folder,))

    for text in found_as:
        assert here.find(CATALOGUE.parse(text)) == path, text
    for text in not_as:
        assert here.find(CATALOGUE.parse(text)) is None, text
    assert not (tmp_path / "models").exists()


def test_a_pull_says_where_it_was_found(tmp_path, ollama) -> None:
    path = ollama.put("registry.ollama.ai/library/qwen3/32b")
    with HubServer() as hub:
        pulls = Pulls(hub, tmp_path / "models", ollama=(ollama.folder,))

        assert pulls("qwen3:32b") == path
        assert "in Ollama's store, used in place" in pulls.told.text
        assert hub.requests == []


def test_a_blob_that_is_not_whole_is_not_used(tmp_path, ollama) -> None:
    ollama.put("registry.ollama.ai/library/qwen3/32b", size=len(WEIGHTS) + 1)
    ollama.put("registry.ollama.ai/library/qwen3/8b", data=WEIGHTS[:-20])
    here = library(tmp_path, ollama=(ollama.folder,))

    assert here.find(CATALOGUE.parse("qwen3:32b")) is None
    assert here.find(CATALOGUE.parse("qwen3:8b")) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"layers": []}', '{"layers": 3}', '{"layers": [3], "config": 1}']
)
def test_manifests_of_other_kinds_are_passed_over(tmp_path, ollama, text) -> None:
    path = ollama.folder / "manifests" / "registry.ollama.ai" / "library" / "qwen3" / "32b"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")

    assert library(tmp_path, ollama=(ollama.folder,)).entries() == []


def test_ollamas_blobs_are_never_removed(tmp_path, ollama) -> None:
    path = ollama.put("registry.ollama.ai/library/qwen3/32b")
    here = library(tmp_path, ollama=(ollama.folder,))
    [entry] = here.named("qwen3:32b")

    with pytest.raises(ConfigError, match="belongs to Ollama"):
        here.remove(entry)

    assert path.exists()


def test_our_own_copy_comes_first(tmp_path, ollama) -> None:
    ollama.put("hf.co/o/r/Q8_0", "Q8_0")
    with HubServer() as hub:
        hub.add("o/r", {"m-Q8_0.gguf": WEIGHTS})
        own = Pulls(hub, tmp_path / "models")("hf:o/r:Q8_0")

    assert library(tmp_path, ollama=(ollama.folder,)).find(CATALOGUE.parse("hf:o/r")) == own


def test_what_the_hubs_own_client_cached_is_used(tmp_path) -> None:
    cache = tmp_path / "cache"
    name = "Qwen3-8B-Q8_0.gguf"
    with HubServer() as hub:
        hub.add("Qwen/Qwen3-8B-GGUF", {name: WEIGHTS, "mmproj-F16.gguf": b"x"})
        cached = hf_hub_download(
            "Qwen/Qwen3-8B-GGUF", name, endpoint=hub.endpoint, token=False, cache_dir=cache
        )
    here = library(tmp_path, hub_cache=cache)

    for text in ("qwen3:8b", "qwen3:8b-q8_0", "hf:Qwen/Qwen3-8B-GGUF:Q8_0"):
        assert str(here.find(CATALOGUE.parse(text))) == cached
    assert here.find(CATALOGUE.parse("qwen3:8b-q6_k")) is None
    [entry] = here.entries()
    assert (entry.name, entry.source) == ("hf:Qwen/Qwen3-8B-GGUF:Q8_0", "hub cache")
    with pytest.raises(ConfigError, match="belongs to hub cache"):
        here.remove(entry)


def test_a_truncated_file_in_the_cache_is_not_used(tmp_path) -> None:
    cache = tmp_path / "cache"
    snapshot = cache / "models--o--r" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "m-Q8_0.gguf").write_bytes(WEIGHTS[:-20])
    (snapshot / "s-Q4_0-00001-of-00002.gguf").write_bytes(WEIGHTS)

    here = library(tmp_path, hub_cache=cache)

    assert here.find(CATALOGUE.parse("hf:o/r:Q8_0")) is None
    assert here.find(CATALOGUE.parse("hf:o/r:Q4_0")) is None


def test_a_file_in_the_cache_is_found_by_its_name(tmp_path) -> None:
    cache = tmp_path / "cache"
    snapshot = cache / "models--o--r" / "snapshots" / "abc"
    (snapshot / "sub").mkdir(parents=True)
    for name in ("a-Q8_0.gguf", "sub/b-Q8_0.gguf"):
        (snapshot / name).write_bytes(WEIGHTS)
    (snapshot / "gone-Q8_0.gguf").symlink_to(tmp_path / "gone")
    here = library(tmp_path, hub_cache=cache)

    assert here.find(CATALOGUE.parse("hf:o/r/sub/b-Q8_0.gguf")) == snapshot / "sub" / "b-Q8_0.gguf"
    assert here.find(CATALOGUE.parse("hf:o/r/b-Q8_0.gguf")) is None
    assert [entry.name for entry in here.entries()] == [
        "hf:o/r/a-Q8_0.gguf",
        "hf:o/r/sub/b-Q8_0.gguf",
    ]
