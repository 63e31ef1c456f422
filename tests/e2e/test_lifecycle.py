"""Start and end of the process: what a person sees, what clients are told, the exit status."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from tests.e2e.live import DEMO, LiveServer
from tests.e2e.watch import running_slots, until

pytestmark = pytest.mark.native

LONG = {
    "model": "demo",
    "messages": [{"role": "user", "content": "hello"}],
    "ignore_eos": True,
    "stream": True,
    "max_tokens": 400,
}


def onegpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


class Stream(threading.Thread):
    """Reads one streamed answer to its end."""

    def __init__(self, server: LiveServer, **fields: object) -> None:
        super().__init__()
        self.server = server
        self.body = LONG | fields
        self.first = threading.Event()
        self.lines: list[str] = []
        self.cut = False
        """Whether the connection broke off."""

    def run(self) -> None:
        with (
            contextlib.suppress(httpx.RemoteProtocolError),
            self.server.client() as http,
            http.stream("POST", "/v1/chat/completions", json=self.body) as response,
        ):
            for line in response.iter_lines():
                if line:
                    self.lines.append(line)
                    self.first.set()
            return
        self.cut = True


def test_the_announced_curl_line_works():
    with LiveServer() as server:
        text = "".join(server.stdout)
        assert server.url in text
        command = text[text.index("curl") :].replace("\\\n", " ")
        done = subprocess.run(
            command, shell=True, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("data: [DONE]")
    assert server.process.returncode == 0


def test_sigterm_lets_what_runs_finish_and_refuses_the_rest():
    with LiveServer("--slots", "1") as server:
        stream = Stream(server)
        stream.start()
        assert stream.first.wait(60)
        server.process.send_signal(signal.SIGTERM)
        with server.client() as http:
            until(lambda: http.get("/health/ready").status_code == 503)
            refused = http.post("/v1/chat/completions", json=LONG)
            assert http.get("/health/live").status_code == 200
        stream.join(60)
        assert server.wait() == 0
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "draining"
    assert "retry-after" in refused.headers
    assert stream.lines[-1] == "data: [DONE]"
    assert json.loads(stream.lines[-2][6:])["choices"][0]["finish_reason"] == "length"


def test_what_outlives_the_grace_ends_with_an_error_event(tmp_path: Path):
    config = tmp_path / "onegpu.yaml"
    config.write_text("server: {shutdown_grace: 0s}\n")
    with LiveServer("--config", str(config)) as server:
        stream = Stream(server, max_tokens=4000)
        stream.start()
        assert stream.first.wait(60)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        stream.join(60)
    assert json.loads(stream.lines[-1][6:])["error"]["code"] == "draining"


def test_a_second_sigterm_ends_at_once():
    with LiveServer() as server:
        stream = Stream(server, max_tokens=4000)
        stream.start()
        assert stream.first.wait(60)
        server.process.send_signal(signal.SIGTERM)
        with server.client() as http:
            until(lambda: http.get("/health/ready").status_code == 503)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM
        stream.join(60)
    assert stream.cut


def test_a_port_in_use_is_named_with_a_way_out():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = onegpu("serve", str(DEMO), "--port", str(port))
    assert done.returncode == 2
    assert f"Port {port} on 127.0.0.1 is in use" in done.stderr
    assert f"--port {port + 1}" in done.stderr
    assert "Traceback" not in done.stderr


def truncated(path: Path) -> None:
    path.write_bytes(DEMO.read_bytes()[:100_000])


def no_gguf(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(1000))


def half_of_the_tensors(path: Path) -> None:
    data = DEMO.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def a_count_that_lies(path: Path) -> None:
    data = bytearray(DEMO.read_bytes())
    data[8:16] = (2**60).to_bytes(8, "little")
    path.write_bytes(data)


def a_layer_too_many(path: Path) -> None:
    """The header of another file: a layer has no tensors."""
    data = DEMO.read_bytes()
    key = b"qwen3.block_count"
    at = data.index(key) + len(key) + 4
    count = int.from_bytes(data[at : at + 4], "little") + 1
    path.write_bytes(data[:at] + count.to_bytes(4, "little") + data[at + 4 :])


BAD_FILES = {
    truncated: "download it again",
    half_of_the_tensors: "download it again",
    no_gguf: "not a GGUF",
    Path.touch: "empty",
    a_count_that_lies: "tensors",
    a_layer_too_many: "claims 6 layers",
}


@pytest.mark.parametrize(("damage", "told"), BAD_FILES.items())
def test_a_file_that_cannot_be_served_is_refused_with_advice(tmp_path: Path, damage, told):
    model = tmp_path / "bad.gguf"
    damage(model)
    done = onegpu("serve", str(model), "--port", "0")
    assert done.returncode == 1
    assert "bad.gguf" in done.stderr
    assert told.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_a_missing_model_is_told_before_anything_starts(tmp_path: Path):
    done = onegpu("serve", str(tmp_path / "nothing.gguf"))
    assert done.returncode == 2
    assert "does not exist" in done.stderr


def test_slots_are_all_free_again_after_a_burst():
    with LiveServer("--slots", "2") as server:
        streams = [Stream(server, max_tokens=20) for _ in range(6)]
        for stream in streams:
            stream.start()
        for stream in streams:
            stream.join(60)
        with server.client() as http:
            until(lambda: running_slots(http) == 0)
    assert all(stream.lines[-1] == "data: [DONE]" for stream in streams)


def test_a_modelfile_is_served_and_what_its_planner_chose_is_told(tmp_path: Path):
    agent = tmp_path / "brief.Modelfile"
    agent.write_text(f"FROM {DEMO}\nPARAMETER num_ctx 600\nSYSTEM Be brief.\n")
    with LiveServer("--slots", "auto", model=agent) as server, server.client() as http:
        (card,) = http.get("/v1/models").json()["data"]
        body = {"model": "brief", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        assert http.post("/v1/chat/completions", json=body).status_code == 200
    assert (card["id"], card["context_window"]) == ("brief", 600)
    told = "".join(server.stdout)
    assert "Planned for brief" in told
    assert "--slots" in told
    assert "planned/allocated MiB" in "".join(server.stderr)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--n-ctx", "1000000", "--slots", "1"], "trained for"),
        (["--slots", "256", "--n-ctx", "32768", "--kv-type", "f32"], "does not fit"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_loaded(arguments, told):
    done = onegpu("serve", str(DEMO), "--port", "0", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Listening" not in done.stderr
    assert "Traceback" not in done.stderr
