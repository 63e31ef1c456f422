"""Headers over the network: how much is read, and what is refused."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from server.catalog.gguf import check_parts, read_header
from server.catalog.header_source import (
    MOST_BYTES,
    planned_chooser,
    read_candidate,
    read_remote,
)
from server.catalog.hub import Hub, HubOptions
from server.catalog.hub_errors import HubError
from server.catalog.hub_files import candidates
from server.catalog.plan import Memory, Wishes, choose, plan, read_shape
from server.core.errors import ModelFileError
from tests.catalog.conftest import ARRAY, STRING, entry
from tests.catalog.hub_server import HubServer
from tests.catalog.plan_headers import (
    QWEN3_32B,
    SMALL,
    encode,
    metadata,
    tensors,
    write_header,
    write_split,
)

GIB = 1 << 30


class Sparse:
    """A server's file: a header, then zeros up to the size. Counts what is fetched."""

    def __init__(self, header: bytes, size: int, *, tells_size: bool = True) -> None:
        self.header, self.size, self.tells_size = header, size, tells_size
        self.fetched = 0
        self.requests = 0

    def __call__(self, _name: str, start: int, end: int) -> tuple[bytes, int | None]:
        self.requests += 1
        got = self.header[start:end].ljust(max(min(end, self.size) - start, 0), b"\0")
        self.fetched += len(got)
        return got, self.size if self.tells_size else None


def test_a_header_of_150_000_tokens_is_read_in_a_few_requests(tmp_path):
    header, size = encode(metadata(QWEN3_32B), list(tensors(QWEN3_32B)))
    source = Sparse(header, size)
    (remote,) = read_remote(source, "m.gguf")
    local = read_header(write_header(tmp_path / "m.gguf", QWEN3_32B))
    assert remote.metadata == local.metadata
    assert remote.tensors == local.tensors
    assert remote.file_size == size > 19 * 10**9
    assert len(header) <= source.fetched < MOST_BYTES
    assert source.requests <= 5


def test_a_server_that_tells_no_size_will_do():
    header, size = encode(metadata(SMALL), list(tensors(SMALL)))
    (remote,) = read_remote(Sparse(header, size, tells_size=False), "m.gguf")
    assert remote.architecture == "qwen3"


def test_a_vocabulary_that_lies_about_its_length_ends_at_the_limit():
    endless = entry("a", ARRAY, struct.pack("<IQ", STRING, 10**9))
    header, _ = encode([*metadata(SMALL), endless], [])
    source = Sparse(header, 40 * GIB)
    with pytest.raises(ModelFileError, match="larger than 20 MB"):
        read_remote(source, "m.gguf")
    assert source.fetched <= MOST_BYTES


def test_a_count_beyond_the_file_is_a_lie_at_once():
    endless = entry("a", ARRAY, struct.pack("<IQ", STRING, 2**40))
    header, _ = encode([*metadata(SMALL), endless], [])
    source = Sparse(header, 4 * GIB)
    with pytest.raises(ModelFileError, match="more than the rest of the file can hold"):
        read_remote(source, "m.gguf")
    assert source.requests == 1


def test_a_safetensors_file_on_the_hub_is_called_one():
    with pytest.raises(ModelFileError, match="safetensors"):
        read_remote(Sparse(struct.pack("<Q", 100) + b'{"a":1}' * 20, 10_000), "m.gguf")


@pytest.fixture
def hub_server():
    with HubServer() as server:
        yield server


def hub_of(server: HubServer, **options) -> Hub:
    return Hub(HubOptions(endpoint=server.endpoint, **options))


def only_candidate(hub: Hub, repo: str):
    return candidates(hub.listing(repo))[0]


def test_the_real_client_reads_the_header_alone(hub_server, tmp_path):
    spec = replace(SMALL, vocabulary=150_000)
    path = write_header(tmp_path / "m-Q4_K_M.gguf", spec)
    data = path.read_bytes()
    hub_server.add("o/r", {path.name: data})
    hub = hub_of(hub_server)
    headers = read_candidate(hub, only_candidate(hub, "o/r"))
    assert read_shape(headers).n_vocab == 150_000
    assert hub_server.bytes_of(path.name) < min(len(data), MOST_BYTES)


def test_the_real_client_reads_split_files(hub_server, tmp_path):
    paths = write_split(tmp_path, SMALL, 3)
    hub_server.add("o/r", {f"Q4_K_M/{path.name}": path.read_bytes() for path in paths})
    hub = hub_of(hub_server)
    headers = read_candidate(hub, only_candidate(hub, "o/r"))
    assert read_shape(headers).weights == read_shape(check_parts(paths[0])).weights


def test_a_server_without_ranges_is_read_no_further_than_needed(hub_server, tmp_path):
    path = write_header(tmp_path / "m-Q4_K_M.gguf", replace(SMALL, layers=400))
    hub_server.add("o/r", {path.name: path.read_bytes()})
    hub_server.ignore_ranges = True
    hub = hub_of(hub_server)
    headers = read_candidate(hub, only_candidate(hub, "o/r"))
    assert read_shape(headers).n_layer == 400


def test_a_private_repository_needs_its_token(hub_server, tmp_path):
    path = write_header(tmp_path / "m-Q4_K_M.gguf", SMALL)
    hub_server.add("o/r", {path.name: path.read_bytes()})
    trusted = hub_of(hub_server, token="t0k")
    hub_server.private["o/r"] = "t0k"
    candidate = only_candidate(trusted, "o/r")
    assert read_shape(read_candidate(trusted, candidate)).n_layer == SMALL.layers
    with pytest.raises(HubError):
        read_candidate(hub_of(hub_server), candidate)


def test_the_chooser_takes_the_largest_that_fits(hub_server, tmp_path):
    sizes = {"Q8_0": 24, "Q4_K_M": 8, "Q2_K": 2}
    files = {}
    for quant, layers in sizes.items():
        path = write_header(tmp_path / f"m-{quant}.gguf", replace(SMALL, layers=layers))
        files[path.name] = path.read_bytes()
    hub_server.add("o/r", files)
    hub = hub_of(hub_server)
    wishes = Wishes(slots=1, n_ctx=512, n_gpu_layers="all")
    shapes = {quant: read_shape(read_header(tmp_path / f"m-{quant}.gguf")) for quant in sizes}
    ample = Memory(gpu_total=4 * GIB)
    needed = {quant: choose(shape, wishes, ample).best for quant, shape in shapes.items()}
    assert all(needed.values())
    card = Memory(gpu_total=needed["Q4_K_M"].total_gpu + ample.reserve)
    chosen = planned_chooser(hub, card, wishes)(candidates(hub.listing("o/r")))
    assert chosen.fits
    assert chosen.candidate.quant == "Q4_K_M"
    assert "largest that fits the GPU" in chosen.reason
    tiny = Memory(gpu_total=ample.reserve)
    refused = planned_chooser(hub, tiny, wishes)(candidates(hub.listing("o/r")))
    assert not refused.fits
    assert refused.candidate.quant == "Q2_K"


def test_the_chooser_prefers_the_plain_sizes_to_a_larger_file(hub_server, tmp_path):
    shapes, hub = serve_quants(hub_server, tmp_path, {"Q8_0": 200, "Q4_K_M": 100})
    plain = plan(shapes["Q4_K_M"], Wishes(n_gpu_layers="all", kv_type="q4_0"), Memory(gpu_total=1))
    squeezed = Wishes(slots=1, n_ctx=2048, n_gpu_layers="all", kv_type="q4_0")
    tight = plan(shapes["Q8_0"], squeezed, Memory(gpu_total=1))
    total = max(plain.total_gpu, tight.total_gpu) + Memory().reserve
    card = Memory(gpu_total=total, reserve=Memory().reserve)
    chosen = planned_chooser(hub, card, Wishes())(candidates(hub.listing("o/r")))
    assert chosen.candidate.quant == "Q4_K_M"
    assert "4 × 8192" in chosen.reason


def test_what_does_not_lie_on_the_gpu_whole_is_taken_small_but_not_coarse(hub_server, tmp_path):
    quants = {"Q8_0": 300, "Q4_K_M": 200, "Q2_K": 190}
    shapes, hub = serve_quants(hub_server, tmp_path, quants)
    least = plan(shapes["Q2_K"], Wishes(slots=1, n_ctx=512, n_gpu_layers=20), Memory(gpu_total=1))
    card = Memory(gpu_total=least.total_gpu + Memory().reserve)
    wishes = Wishes(slots=1, n_ctx=512)
    chosen = planned_chooser(hub, card, wishes)(candidates(hub.listing("o/r")))
    assert chosen.fits
    assert chosen.candidate.quant == "Q4_K_M"
    assert "of 201 layers on the GPU" in chosen.reason
    # The header of each was read once, for all passes together.
    assert hub_server.bytes_of("m-Q4_K_M.gguf") <= 2 << 20


def serve_quants(server, folder, layers_of: dict[str, int]):
    files, shapes = {}, {}
    for quant, layers in layers_of.items():
        path = write_header(folder / f"m-{quant}.gguf", replace(SMALL, layers=layers))
        files[path.name] = path.read_bytes()
        shapes[quant] = read_shape(read_header(path))
    server.add("o/r", files)
    return shapes, hub_of(server)


def test_an_unreadable_header_costs_no_more_than_its_own_file(hub_server, tmp_path, caplog):
    path = write_header(tmp_path / "m-Q4_K_M.gguf", SMALL)
    data = path.read_bytes()
    broken = b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60) + data[24:]
    hub_server.add("o/r", {"m-Q8_0.gguf": broken + bytes(64), path.name: data})
    hub = hub_of(hub_server)
    choose_among = planned_chooser(hub, Memory(cpu_available=64 * GIB), Wishes())
    chosen = choose_among(candidates(hub.listing("o/r")))
    assert chosen.candidate.quant == "Q4_K_M"
    assert "Q8_0 is left out of the choice" in caplog.text
    hub_server.add("o/bad", {"m-Q8_0.gguf": broken})
    with pytest.raises(ModelFileError):
        planned_chooser(hub, Memory(), Wishes())(candidates(hub.listing("o/bad")))
