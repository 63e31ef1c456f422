"""The hub through the real client: what it lists, what it sends, and what each failure says."""

import pytest

from server import __version__
from server.catalog.download_transfer import Partial
from server.catalog.hub import Hub, HubOptions
from server.catalog.hub_errors import Backoff, HubError
from server.catalog.hub_files import HubFile, Listing, candidates, check_parts, quant_of
from server.core.errors import ModelFileError
from tests.catalog.hub_downloads import Pulls, Told, blob
from tests.catalog.hub_server import Hold, HubServer

NAME = "m-Q4_K_M.gguf"
REF = "hf:o/r:Q4_K_M"


@pytest.fixture
def hub():
    with HubServer() as server:
        server.add("o/r", {NAME: blob(200_000), "README.md": b"# m"})
        yield server


@pytest.fixture
def pulls(hub, tmp_path):
    return Pulls(hub, tmp_path / "models")


def listing(*names: str, size: int = 100) -> Listing:
    return Listing("o/r", "c", tuple(HubFile(name, size, "0" * 64) for name in names))


def test_a_listing_has_sizes_checksums_commit_and_license(hub) -> None:
    found = Hub(HubOptions(endpoint=hub.endpoint)).listing("o/r")

    assert found.commit == hub.repos["o/r"].commit
    assert found.license == "apache-2.0"
    assert found.files[0] == HubFile(NAME, 200_000, hub.sha256("o/r", NAME))
    assert found.files[1].sha256 is None


def test_a_range_of_a_file_is_read_without_the_rest(hub) -> None:
    data, total = Hub(HubOptions(endpoint=hub.endpoint)).read("o/r", NAME, start=1000, end=3000)

    assert (data, total) == (blob(200_000)[1000:3000], 200_000)
    assert hub.bytes_of(NAME) == 2000


def test_a_range_from_a_server_without_ranges_is_the_same(hub) -> None:
    hub.ignore_ranges = True

    data, total = Hub(HubOptions(endpoint=hub.endpoint)).read("o/r", NAME, start=1000, end=3000)

    assert (data, total) == (blob(200_000)[1000:3000], 200_000)


def test_reading_a_range_survives_a_passing_failure(hub) -> None:
    hub.failures[NAME] = [(503, {}), (429, {"Retry-After": "3"})]
    waits: list[float] = []
    reader = Hub(HubOptions(endpoint=hub.endpoint), sleep=waits.append)

    assert reader.read("o/r", NAME, start=0, end=10)[0] == blob(200_000)[:10]
    assert waits == [1, 3]
    hub.failures[NAME] = [(503, {})] * 3
    with pytest.raises(HubError, match="answered 503"):
        reader.read("o/r", NAME, start=0, end=10)


def test_the_token_goes_to_the_hub_and_never_to_where_it_redirects(hub, pulls) -> None:
    hub.private["o/r"] = "hf_secret"

    pulls(REF, token="hf_secret")

    tokens = {request.path.startswith("/cdn/"): request.token for request in hub.requests}
    assert tokens == {False: "hf_secret", True: None}


def test_the_client_says_who_it_is_and_nothing_about_the_machine(hub, pulls) -> None:
    pulls(REF)

    assert {request.user_agent for request in hub.requests} == {f"onegpu/{__version__}"}


def test_a_token_in_the_environment_is_not_taken_behind_the_settings_back(
    hub, pulls, monkeypatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_stray")

    pulls(REF)

    assert {request.token for request in hub.requests} == {None}


@pytest.mark.parametrize(
    ("setup", "options", "message"),
    [
        ("missing", {}, "has no repository o/none, or it is private. Give a token"),
        ("private", {}, "has no repository o/r, or it is private. Give a token"),
        ("private", {"token": "hf_other"}, "or this token may not read it"),
        ("gated", {}, "is gated: accept its terms at"),
        ("revision", {}, "o/r has no such revision"),
        ("forbidden", {"token": "hf_old"}, "refuses the token for o/r (status 403)"),
        ("html", {}, "does not answer as a model hub does"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(hub, pulls, setup, options, message) -> None:
    text = {"missing": "hf:o/none:Q4_K_M", "revision": "hf:o/r@nope:Q4_K_M"}.get(setup, REF)
    if setup == "private":
        hub.private["o/r"] = "hf_secret"
    if setup == "gated":
        hub.gated["o/r"] = "hf_secret"
    if setup == "forbidden":
        hub.failures["api"] = [(403, {})]
    if setup == "html":
        hub.failures["api"] = [(200, {"Content-Type": "text/html"})]

    with pytest.raises(HubError) as caught:
        pulls(text, **options)

    assert message in caught.value.message
    assert pulls.waits == []
    assert list(pulls.library.models_dir.rglob("*.gguf")) == []


def test_an_endpoint_where_nothing_listens_is_named(hub, pulls) -> None:
    with HubServer() as gone:
        endpoint = gone.endpoint

    with pytest.raises(HubError, match=r"cannot be reached: .*name a mirror"):
        pulls(REF, endpoint=endpoint)

    assert pulls.waits == [1, 2]


def test_a_rate_limit_is_waited_for_as_long_as_the_hub_asks(hub, pulls) -> None:
    hub.failures["api"] = [(429, {"Retry-After": "7"}), (429, {"RateLimit": '"api";r=0;t=55'})]
    hub.failures[NAME] = [(429, {"Retry-After": "11"}), (503, {})]

    path = pulls(REF)

    assert path.read_bytes() == blob(200_000)
    assert pulls.waits == [7, 55, 11, 2]


def test_a_rate_limit_of_an_hour_is_not_waited_for(hub, pulls) -> None:
    hub.failures["api"] = [(429, {"Retry-After": "3600"})]

    with pytest.raises(HubError, match=r"limits the rate of requests. Try again in 3600 s"):
        pulls(REF)

    assert pulls.waits == []


def test_a_connection_that_falls_silent_is_opened_again(hub, tmp_path) -> None:
    hold = hub.hold[NAME] = Hold(after=100_000)
    reader = Hub(HubOptions(endpoint=hub.endpoint, timeout=0.5))
    found = reader.listing("o/r")
    partial = Partial(tmp_path / NAME, found.files[0])
    told = Told()
    told.begin(NAME, total=200_000, done=0)

    def go_on(_: float) -> None:
        hold.release.set()

    backoff = Backoff(6, sleep=go_on, say=told.say, explain=lambda error: HubError(str(error)))
    partial.fetch(
        lambda start: reader.body("o/r", found.commit, NAME, start=start),
        progress=told,
        backoff=backoff,
    )

    assert hold.release.is_set()
    assert "the server fell silent; trying again in 1 s (1)" in told.text
    assert partial.sound


def test_a_server_that_keeps_failing_is_given_up(hub, pulls) -> None:
    hub.failures[NAME] = [(500, {})] * 20

    with pytest.raises(HubError, match="answered 500 for o/r"):
        pulls(REF)

    assert pulls.waits == [1, 2, 4, 8, 16]


def test_offline_mode_asks_nothing(hub, pulls) -> None:
    with pytest.raises(HubError, match="offline"):
        pulls(REF, offline=True)
    with pytest.raises(HubError, match="offline"):
        Hub(HubOptions(offline=True))

    assert hub.requests == []


def test_offline_mode_finds_what_is_here(hub, pulls) -> None:
    path = pulls(REF)
    hub.requests.clear()

    assert pulls(REF, offline=True) == path
    assert hub.requests == []


def test_a_name_that_leads_out_of_the_folder_is_refused(hub, pulls, tmp_path) -> None:
    hub.add("o/evil", {"../../x-Q4_K_M.gguf": b"x"})

    with pytest.raises(HubError, match="unsafe name"):
        pulls("hf:o/evil:Q4_K_M")

    assert list(tmp_path.rglob("x-Q4_K_M*")) == []


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("Qwen3-32B-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2-7b-instruct-q5_k_m.gguf", "Q5_K_M"),
        ("qwen2-7b-instruct-fp16.gguf", "F16"),
        ("qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf", "Q4_K_M"),
        ("Qwen3-32B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("BF16/Qwen3-32B-BF16-00001-of-00002.gguf", "BF16"),
        ("Q8_0/model-00001-of-00003.gguf", "Q8_0"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Q4"),
        ("Phi-3-mini-4k-instruct.IQ3_XS.gguf", "IQ3_XS"),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4"),
        ("bitnet-TQ2_0.gguf", "TQ2_0"),
        ("demo.gguf", None),
        ("Qwen3-8B.gguf", None),
    ],
)
def test_quantizations_are_told_from_names(path, quant) -> None:
    assert quant_of(path) == quant


def test_parts_are_one_candidate_and_projectors_none() -> None:
    found = candidates(
        listing(
            "a-Q4_K_M-00002-of-00002.gguf",
            "a-Q4_K_M-00001-of-00002.gguf",
            "a-Q8_0.gguf",
            "mmproj-F16.gguf",
            "imatrix_unsloth.gguf",
        )
    )

    assert [(c.quant, c.size, len(c.files)) for c in found] == [
        ("Q4_K_M", 200, 2),
        ("Q8_0", 100, 1),
    ]
    assert found[0].files[0].path == "a-Q4_K_M-00001-of-00002.gguf"


def test_a_split_model_without_all_parts_is_refused() -> None:
    [found] = candidates(listing("a-Q4_K_M-00001-of-00002.gguf"))

    with pytest.raises(ModelFileError, match=r"lacks a-Q4_K_M-00002-of-00002\.gguf"):
        check_parts(found)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("model-00001-of-00002.safetensors", "config.json"), "it has safetensors weights."),
        (("pytorch_model.bin", "x.onnx"), "it has ONNX models, PyTorch weights."),
        (("README.md",), r"o/r has no GGUF files. Look for"),
        (("mmproj-F16.gguf",), "has no GGUF files"),
    ],
)
def test_a_repository_without_gguf_says_what_it_has(names, message) -> None:
    with pytest.raises(ModelFileError, match=message):
        candidates(listing(*names))
