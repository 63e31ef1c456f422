"""Dockerfile.cuda and compose.yaml: linted, and read for what the image promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from server.settings import Settings
from tests.scripts.dockerfile import FILE, LAST, ROOT, STEPS, all_of, copied


def test_the_linter_finds_nothing() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [linter, "--failure-threshold", "style", ROOT / "Dockerfile.cuda"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_two_stages_on_bases_of_the_same_pinned_version() -> None:
    defaults = dict(i.text.split("=", 1) for i in FILE if i.word == "ARG" and i.stage == -1)
    bases = [re.match(r"\$\{(\w+)\}", i.text) for i in all_of("FROM")]
    assert [base and base[1] for base in bases] == ["BUILD_IMAGE", "RUN_IMAGE"]
    versions = {
        re.fullmatch(r"nvidia/cuda:(\d+\.\d+\.\d+)-(devel|runtime)-(ubuntu\d+\.\d+)", base)
        for base in defaults.values()
    }
    assert None not in versions
    assert len({(found[1], found[3]) for found in versions if found}) == 1


def test_the_image_serves_as_a_user_that_is_not_root_and_stops_on_sigterm() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", all_of("USER", LAST)[-1].text)
    assert not [i for i in FILE if i.word == "ADD"], "COPY takes nothing from a network"
    assert not [i for i in FILE if i.word == "RUN" and re.search("curl|wget|git clone", i.text)]
    assert [i.text for i in all_of("STOPSIGNAL")] == ["SIGTERM"]
    assert json.loads(all_of("VOLUME", LAST)[0].text) == ["/app/models", "/app/data"]
    # As lists: a shell between the signal and the server would not pass it on.
    assert json.loads(all_of("ENTRYPOINT", LAST)[0].text) == ["/opt/onegpu/bin/onegpu"]
    assert json.loads(all_of("CMD", LAST)[0].text) == ["serve"]
    assert "healthcheck.py" in json.loads(re.sub(r".*?CMD ", "", all_of("HEALTHCHECK")[0].text))[1]


def test_everything_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    assert "*" in ignored
    for stage in (0, 1):
        for sources, _ in copied(stage):
            for source in sources:
                assert (ROOT / source).exists(), source
                assert any(Path(source).is_relative_to(path) for path in allowed), source
    assert "models" not in allowed


def test_every_step_is_used_and_can_be_run() -> None:
    text = (ROOT / "Dockerfile.cuda").read_text(encoding="utf-8")
    scripts = sorted(STEPS.iterdir())
    scripts = [path for path in scripts if path.suffix in (".sh", ".py")]
    assert len(scripts) == 6
    for path in scripts:
        assert f"scripts/container/{path.name}" in text
    for path in STEPS.glob("*.sh"):
        assert os.access(path, os.X_OK), path
        subprocess.run(["bash", "-n", path], check=True)


def compose() -> dict:
    return yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_compose_reserves_the_gpu_restarts_and_gives_time_to_stop() -> None:
    services = compose()["services"]
    reserved = services["onegpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert reserved == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    grace = Settings().server.shutdown_grace
    image = all_of("HEALTHCHECK")[0].text
    for service in services.values():
        assert service["restart"] == "always"
        assert service["volumes"] == ["models:/app/models", "data:/app/data"]
        assert "ONEGPU_SERVER__ALLOW_NO_KEYS" in service["environment"], "passed on, never set"
        assert service["stop_signal"] == "SIGTERM"
        # Draining, then the step in progress (server/assembly/lifecycle.py, `_STOP_SECONDS`).
        assert seconds(service["stop_grace_period"]) >= grace + 35
        assert service["init"] is True, "SIGTERM during a download must end it"
        check = service["healthcheck"]
        assert check["start_period"] == "2h", "20 GB at 25 Mbit/s are no failure"
        assert ["CMD", *json.loads(image.split("CMD ")[1])] == check["test"]
        for option in ("interval", "timeout", "start_period", "retries"):
            assert f"--{option.replace('_', '-')}={check[option]}" in image
        assert service["ports"][0].startswith("${BIND:-127.0.0.1}:")
    assert services["onegpu-cpu"]["profiles"] == ["cpu"]
    assert "deploy" not in services["onegpu-cpu"]


def test_compose_builds_with_arguments_that_the_file_takes() -> None:
    taken = {i.text.split("=")[0] for i in all_of("ARG")}
    architectures = next(i.text for i in all_of("ARG") if "ARCHITECTURES" in i.text).split("=")[1]
    for service in compose()["services"].values():
        build = service["build"]
        assert (ROOT / build["dockerfile"]).exists()
        assert set(build["args"]) <= taken
    args = compose()["services"]["onegpu"]["build"]["args"]
    assert args["CUDA_ARCHITECTURES"] == "${CUDA_ARCHITECTURES:-" + architectures.strip('"') + "}"
