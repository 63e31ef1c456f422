"""A configuration that is kept as bytes is the same one again."""

import pytest

from server.settings import Settings, load
from server.settings.difference import changes
from server.settings.snapshot import from_bytes, to_bytes
from tests.test_documents import EXAMPLE

WRITTEN = {
    "model": {"path": "m.gguf", "n_gpu_layers": "all", "adapter_scale": 2, "keep_alive": "5m"},
    "models": {"a": {"from": "qwen2:7b", "keep_alive": "10m", "preload": True, "slots": "auto"}},
    "aliases": {"x": {"a": 1, "m": 3}, "y": "a"},
    "remotes": {"far": {"base_url": "https://far.test/v1", "model": "m", "api_key": "secret"}},
    "memory": {"vram": "24GiB", "reserve": "1GiB"},
    "engine": {"slots": "auto", "n_ctx": 100, "kv_type": "q8_0"},
    "gateway": {
        "rate_limit": {"requests_per_minute": 12},
        "timeout": {"total": "1h"},
        "fallback": {"model": "a", "when": ["loading"]},
        "gpu_guard": {"low": "1MiB"},
    },
    "server": {"cors_origins": ["https://a.b"], "host_names": ["a.b"], "max_request_size": "1MB"},
    "hub": {"token": "x"},
}


@pytest.mark.parametrize("made", ["nothing", "example", "much"])
def test_it_is_the_same_again_defaults_included(made) -> None:
    before = {
        "nothing": Settings,
        "example": lambda: load(EXAMPLE, environ={}).settings,
        "much": lambda: Settings.model_validate(WRITTEN),
    }[made]()

    after = from_bytes(to_bytes(before))

    assert after == before
    assert after.model_fields_set == before.model_fields_set
    # What nobody has written gives way where it does not fit; what somebody has written does not.
    assert after.engine.model_fields_set == before.engine.model_fields_set


def test_secrets_are_not_told_among_changes() -> None:
    old, new = (
        Settings.model_validate(
            {
                "hub": {"token": key},
                "remotes": {"far": {"base_url": "https://x.test", "model": "m", "api_key": key}},
            }
        )
        for key in ("abc", "xyz")
    )
    told = [change.told for change in changes(old, new)]
    assert told == ["remotes", "hub.token"]
