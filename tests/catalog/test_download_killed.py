"""The command itself, killed in the middle with SIGKILL, then given again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.catalog import killing
from tests.catalog.hub_downloads import blob
from tests.catalog.hub_server import Hold, HubServer

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = "m-Q4_K_M.gguf"
SIZE = 24 << 20
# More than the client's receive buffer and its write buffer together: some of it is on disk.
HELD = 16 << 20


def command(hub: HubServer) -> list[str]:
    script = str(ROOT / "scripts" / "download_model.py")
    return [
        sys.executable,
        script,
        "hf:o/r:Q4_K_M",
        "--models-dir",
        "m",
        "--endpoint",
        hub.endpoint,
    ]


def environment(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "PATH": os.environ["PATH"]}


@pytest.mark.slow
def test_a_killed_download_goes_on_with_the_same_command(tmp_path) -> None:
    with HubServer() as hub:
        data = blob(SIZE)
        hub.add("o/r", {NAME: data})
        hold = hub.hold[NAME] = Hold(after=HELD)
        folder = tmp_path / "m" / "o" / "r"

        child = subprocess.Popen(
            command(hub),
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert hold.reached.wait(60)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
            hold.release.set()
        [part] = folder.glob("*.part")
        kept = part.stat().st_size
        assert 0 < kept < SIZE
        assert not (folder / NAME).exists()
        listed = run(hub, tmp_path, "list")
        assert f"{100 * kept // SIZE} % there" in listed.stdout

        ended = run(hub, tmp_path)

        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.strip() == f"m/o/r/{NAME}"
        assert (folder / NAME).read_bytes() == data
        assert [request.range for request in hub.gets(NAME)] == [None, f"bytes={kept}-"]
        assert "checking what is there" in ended.stderr
        assert f"verified SHA-256 {hub.sha256('o/r', NAME)[:12]}" in ended.stderr
        # Nothing else came along: no bars, no warnings of the client.
        assert "\r" not in ended.stderr
        assert "it/s" not in ended.stderr


def run(hub: HubServer, home: Path, other: str | None = None) -> subprocess.CompletedProcess[str]:
    argv = command(hub)
    if other is not None:
        argv = [sys.executable, "-m", "server", other, "--models-dir", "m"]
    return subprocess.run(
        argv,
        cwd=home,
        env={**environment(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_ctrl_c_says_that_it_can_go_on(tmp_path) -> None:
    with HubServer() as hub:
        hub.add("o/r", {NAME: blob(SIZE)})
        hold = hub.hold[NAME] = Hold(after=HELD)
        child = subprocess.Popen(
            command(hub),
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert hold.reached.wait(60)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
        hold.release.set()

    assert (child.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert "Traceback" not in err
    assert {path.suffix for path in (tmp_path / "m" / "o" / "r").iterdir()} == {".json", ".part"}


def test_the_script_says_what_to_do_where_nothing_is_installed() -> None:
    script = str(ROOT / "scripts" / "download_model.py")

    ended = subprocess.run(
        [sys.executable, "-S", script, "x"], capture_output=True, text=True, check=False
    )

    assert ended.returncode == 1
    assert "After `make install`: .venv/bin/python scripts/download_model.py NAME" in ended.stderr


@pytest.mark.slow
def test_nothing_is_asked_of_the_hub_but_the_model(tmp_path) -> None:
    with HubServer() as hub:
        hub.add("o/r", {NAME: blob(100_000)})
        # The client takes this variable for everything that it asks on its own account.
        own = {**environment(tmp_path), "HF_ENDPOINT": hub.endpoint}

        ended = subprocess.run(
            command(hub), cwd=tmp_path, env=own, check=True, capture_output=True, text=True
        )

        assert [line.split()[0] for line in ended.stderr.splitlines()] == [
            f"{NAME}:",
            f"{NAME}:",
            "verified",
        ]
        paths = [request.path for request in hub.requests]
        commit = hub.repos["o/r"].commit
        assert paths == ["/api/models/o/r", f"/o/r/resolve/{commit}/{NAME}", f"/cdn/{NAME}"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


@pytest.mark.slow
def test_killed_at_any_step_nothing_half_is_served_and_the_same_command_mends_it(tmp_path) -> None:
    with HubServer() as hub:
        hub.add("o/split", {n: blob(killing.SIZE, i) for i, n in enumerate(killing.NAMES)})

        ended = subprocess.run(
            [sys.executable, "-m", "tests.catalog.killing", hub.endpoint, str(tmp_path / "m")],
            cwd=ROOT,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )

    assert ended.returncode == 0, ended.stderr
    steps = [line.split()[0] for line in ended.stdout.splitlines() if line.endswith(" steps")]
    assert len(steps) == 2
    assert all(int(count) > 10 for count in steps)
    assert len(ended.stdout.splitlines()) == 2, ended.stdout
