"""`onegpu serve` as two processes: what clients and people see when one of them ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from bench.kill import tally
from tests.cli.pseudo_terminal import PseudoTerminal
from tests.e2e.live import DEMO, LiveServer
from tests.e2e.watch import children, until

pytestmark = pytest.mark.native

ASK = {"model": "demo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # Nobody may have waited for it yet.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def worker_of(server: LiveServer) -> int:
    (worker,) = children(server.process.pid)
    return worker


def test_requests_outlive_workers_that_are_killed() -> None:
    seen = asyncio.run(tally(DEMO, users=12, kills=2, pause=0.0))

    assert len(seen.kills) == 2
    assert seen.refused == 0
    assert not seen.lost
    # Whatever was under way has ended: with an answer, an error or a close.
    assert set(seen.cut) <= {"answered", "0 ConnectionResetError", "0 IncompleteReadError"}
    assert seen.orphans == []
    assert seen.status == 0
    assert len(seen.loads) == 3


def test_a_worker_computes_in_huge_pages_where_the_system_gives_them() -> None:
    with LiveServer() as server, server.client() as http:
        environ = Path(f"/proc/{worker_of(server)}/environ").read_bytes().split(b"\0")
        assert http.post("/v1/chat/completions", json=ASK).status_code == 200
    assert b"GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in environ


def test_a_request_that_brings_the_server_down_twice_is_refused() -> None:
    poison = ASK | {"stream": True, "max_tokens": 4000, "ignore_eos": True}
    with LiveServer() as server, server.client() as http:
        for _ in range(2):
            with http.stream("POST", "/v1/chat/completions", json=poison) as response:
                lines = response.iter_lines()
                while '"content":"' not in next(lines):
                    pass
                os.kill(worker_of(server), signal.SIGABRT)
                with pytest.raises(httpx.RemoteProtocolError):
                    list(lines)
        refused = http.post("/v1/chat/completions", json=poison)
        assert http.post("/v1/chat/completions", json=ASK).status_code == 200
        metrics = http.get("/metrics").text
    assert refused.status_code == 422
    assert refused.json()["error"]["code"] == "repeated_crash"
    assert 'onegpu_restarts_total{cause="crashed"} 2.0' in metrics
    assert "".join(server.stderr).count("was killed by SIGABRT") == 2


def test_a_worker_ends_when_its_supervisor_is_killed() -> None:
    with LiveServer() as server:
        worker = worker_of(server)
        server.process.kill()
        assert server.wait() == -signal.SIGKILL
        until(lambda: is_gone(worker))


def after_a_restart_with(configuration: str, folder: Path) -> str:
    """Kill the worker of a server whose configuration has become this; return what was told.

    The next one must serve with the configuration that the first one had.
    """
    config = folder / "onegpu.yaml"
    config.write_text("engine: {n_ctx: 500}\n")
    with LiveServer("--config", str(config)) as server, server.client() as http:
        config.write_text(configuration)
        worker = worker_of(server)
        os.kill(worker, signal.SIGKILL)
        until(lambda: is_gone(worker))
        assert http.post("/v1/chat/completions", json=ASK).status_code == 200
        assert http.get("/props").json()["default_generation_settings"]["n_ctx"] == 500
    told = "".join(server.stderr)
    assert "The last configuration that one could serve with is used." in told
    return told


def test_a_configuration_that_went_wrong_does_not_keep_a_worker_from_its_restart(
    tmp_path: Path,
) -> None:
    assert "onegpu.yaml:1" in after_a_restart_with("engine: {n_ctx: many}\n", tmp_path)


def test_a_start_that_fails_later_falls_back_to_what_served_before(tmp_path: Path) -> None:
    # Only whoever knows the models sees this.
    told = after_a_restart_with("aliases: {x: nobody}\n", tmp_path)
    assert "no model is served under the name 'nobody'" in told


def test_without_a_supervisor_there_is_one_process(monkeypatch) -> None:
    monkeypatch.setenv("ONEGPU_SERVER__SUPERVISED", "false")
    with LiveServer() as server, server.client() as http:
        assert children(server.process.pid) == []
        assert http.post("/v1/chat/completions", json=ASK).status_code == 200
    assert server.process.returncode == 0


def serve_at_a_terminal(home: Path) -> PseudoTerminal:
    return PseudoTerminal("serve", str(DEMO), "--port", "0", home=home)


def url_in(text: str) -> str:
    return text.rpartition("is ready on ")[2].split()[0]


def test_ctrl_c_once_is_a_graceful_end(tmp_path: Path) -> None:
    with serve_at_a_terminal(tmp_path) as terminal:
        terminal.until("is ready on http://")
        terminal.type("\x03")
        terminal.until("Shutting down: 0 requests")
        assert terminal.end() == 0


def test_ctrl_c_twice_is_the_end_at_once(tmp_path: Path) -> None:
    with serve_at_a_terminal(tmp_path) as terminal:
        url = url_in(terminal.until("is ready on http://") + terminal.until("\n"))
        body = ASK | {"stream": True, "max_tokens": 4000, "ignore_eos": True}
        with (
            httpx.Client(base_url=url, timeout=60, trust_env=False) as http,
            http.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            lines = response.iter_lines()
            next(lines)
            terminal.type("\x03")
            terminal.until("Shutting down: 1 requests")
            terminal.type("\x03")
            assert terminal.end() == 128 + signal.SIGINT
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)


def test_a_terminal_that_closes_ends_it(tmp_path: Path) -> None:
    with serve_at_a_terminal(tmp_path) as terminal:
        terminal.until("What is a slot?")
        terminal.until("\r\n\r\n")
        (worker,) = children(terminal.pid)
        assert terminal.hang_up() == 0
        assert is_gone(worker)


def test_sighup_applies_what_it_can_and_says_what_it_cannot(tmp_path: Path) -> None:
    config = tmp_path / "onegpu.yaml"
    config.write_text("engine: {n_ctx: 500}\n")
    with LiveServer("--config", str(config)) as server, server.client() as http:
        unknown = ASK | {"surprise": 1}
        assert http.post("/v1/chat/completions", json=unknown).status_code == 200

        config.write_text(
            "engine: {n_ctx: 600}\ngateway: {strict: true}\nlogging: {level: debug}\n"
        )
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "Only a restart brings engine.n_ctx 500 → 600" in "".join(server.stderr))
        assert "logging.level info → debug" in "".join(server.stderr)
        assert http.post("/v1/chat/completions", json=unknown).status_code == 400
        assert http.get("/props").json()["default_generation_settings"]["n_ctx"] == 500

        config.write_text("gateway: {strict: perhaps}\n")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "The configuration stays as it was" in "".join(server.stderr))
        assert "onegpu.yaml:1: gateway.strict" in "".join(server.stderr)
        assert http.post("/v1/chat/completions", json=unknown).status_code == 400
        assert len(children(server.process.pid)) == 1


def test_a_signal_to_both_processes_is_one_wish() -> None:
    """systemd does so by default, and others who end whole groups of processes."""
    body = ASK | {"stream": True, "max_tokens": 400, "ignore_eos": True}
    with LiveServer() as server:
        with server.client() as http, http.stream("POST", "/v1/chat/completions", json=body) as got:
            lines = got.iter_lines()
            next(lines)
            os.kill(worker_of(server), signal.SIGTERM)
            until(lambda: "Shutting down" in "".join(server.stderr))
            server.process.send_signal(signal.SIGTERM)
            last = [line for line in lines if line][-1]
        assert server.wait() == 0
    assert last == "data: [DONE]"


def test_it_serves_with_its_standard_streams_closed() -> None:
    """What prints to descriptor 1 must not print into the socket that got its number."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve = [sys.executable, "-m", "server", "serve", str(DEMO), "--port", str(port)]
    environ = os.environ | {"ONEGPU_ENGINE__THREADS": "1", "ONEGPU_DATA_DIR": "/nonexistent"}
    process = subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *serve], env=environ)
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            timeout=60,
            trust_env=False,
        ) as http:
            until(lambda: process.poll() is not None or answers(http))
            assert http.post("/v1/chat/completions", json=ASK).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def answers(http: httpx.Client) -> bool:
    try:
        return http.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False
