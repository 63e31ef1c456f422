"""`onegpu bench` as a command: two real servers, and what goes wrong with them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading

import anyio
import pytest

from server.cli.main import main
from tests.cli.scripted_server import DONE, ScriptedServer, chunk
from tests.fakes import FakeEngine, Script
from tests.serving import MODEL, Stack, serve

ONE_ROW = ("--scenarios", "report-short", "--rounds", "1")


@pytest.fixture(autouse=True)
def _nobodys_key(monkeypatch) -> None:
    monkeypatch.delenv("ONEGPU_KEY", raising=False)


@pytest.fixture
def anyio_backend():
    return "asyncio", {"use_uvloop": True}


async def bench(*arguments: str) -> int:
    return await anyio.to_thread.run_sync(main, ["bench", *arguments])


@pytest.mark.anyio
async def test_two_servers_are_measured_in_turn(tmp_path, capsys) -> None:
    order: list[str] = []

    def engine(name: str, cached: int) -> FakeEngine:
        def script(_request: object) -> Script:
            order.append(name)
            return Script(texts=("Hello", " there"), cached=cached)

        return FakeEngine(script=script)

    stacks = Stack(engine=engine("A", 8)), Stack(engine=engine("B", 0))
    async with serve(stacks[0]) as one, serve(stacks[1]) as two:
        status = await bench(
            *(f"one={one.url}", f"two={two.url}/v1", "--model", MODEL, "--seed", "3"),
            *("--scenarios", "short@2,agents", "--users", "1", "--rounds", "2"),
            *("--out", str(tmp_path / "figures")),
        )
    out, err = capsys.readouterr()
    written = json.loads((tmp_path / "figures.json").read_text())

    assert status == 0
    # Probes and the length of a word; then 24 short ones, and 3 cold and 3 warm of the agent.
    short, agents = ["A"] * 24 + ["B"] * 24, ["A"] * 6 + ["B"] * 6
    assert order == ["A", "B", "A", "A", *short, *short, *agents, *agents]
    assert [run["server"] for run in written["runs"][:4]] == ["one", "two"] * 2
    assert list(written["table"]) == ["short @2", "agents cold @1", "agents warm @1"]
    assert written["seed"] == 3
    assert written["table"]["short @2"][0]["errors"] == 0
    assert "one / two" in out
    assert "agents warm @1, round 2, two: first token p95" in err
    assert (tmp_path / "figures.svg").read_text().startswith("<svg")


@pytest.mark.anyio
async def test_servers_get_the_same_questions_and_rounds_others(tmp_path) -> None:
    async with serve(Stack()) as one, serve(Stack()) as two:
        await bench(
            *(one.url, two.url, "--model", MODEL, "--scenarios", "short", "--users", "1"),
            *("--tokens-per-word", "2", "--out", str(tmp_path / "x")),
        )
    # One at a time, and after the probe.
    first, second = ([r.prompt for r in s.engine.requests[1:]] for s in (one, two))

    assert first == second
    assert len(first) == 48
    assert len({tuple(prompt) for prompt in first}) == 48


def test_nobody_there_is_said(tmp_path, capsys) -> None:
    with ScriptedServer() as gone:
        url = gone.url

    assert main(["bench", url, "--out", str(tmp_path / "x")]) == 1
    assert f"No server answers at {url}." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_model_is_said_by_the_server(tmp_path, capsys) -> None:
    with ScriptedServer(tiny={}) as server:
        missing = {"error": {"message": "There is no model big. Served: tiny.", "code": "m"}}
        server.chats((404, missing))
        status = main(["bench", server.url, "--model", "big", "--out", str(tmp_path / "x")])

    assert status == 1
    assert "answered 404: There is no model big. Served: tiny" in capsys.readouterr().err


def test_one_of_several_models_is_to_be_named(tmp_path, capsys) -> None:
    with ScriptedServer(a={}, b={}) as server:
        status = main(["bench", server.url, "--out", str(tmp_path / "x")])

    assert status == 2
    assert "a, b. Name one with --model" in capsys.readouterr().err


def test_a_server_that_cannot_stream_is_said(tmp_path, capsys) -> None:
    with ScriptedServer(m={}) as server:
        server.chats((200, {"choices": [{"message": {"content": "whole"}}]}))
        assert main(["bench", server.url, "--out", str(tmp_path / "x")]) == 1

    assert "in one piece where a stream was asked for" in capsys.readouterr().err


def test_a_server_without_usage_is_measured_by_its_chunks(tmp_path, capsys) -> None:
    with ScriptedServer(m={}) as server:
        server.chats([chunk("a"), chunk("b"), chunk(finish="stop"), DONE])
        status = main(["bench", server.url, *ONE_ROW, "--out", str(tmp_path / "x")])

    assert status == 0
    assert "chunks are counted as tokens" in capsys.readouterr().out
    (run,) = json.loads((tmp_path / "x.json").read_text())["runs"]
    assert run["tokens"] == 2 * run["requests"]


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_was_measured(tmp_path, told) -> None:
    held = threading.Event()

    def forever():
        yield chunk("a")
        held.wait(30)

    fine = [chunk("a"), chunk(finish="stop"), DONE]
    with ScriptedServer(m={}) as server:
        server.chats(*[fine] * 5, forever())
        command = [sys.executable, "-m", "server", "bench", server.url, "--rounds", "1"]
        command += ["--scenarios", "report-short,report-longdoc", "--out", str(tmp_path / "x")]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            for line in process.stderr:
                if line.startswith("report-short @1, round 1"):
                    break
            process.send_signal(told)
            said = process.stderr.read()
        held.set()

    assert process.returncode == 130
    assert "Traceback" not in said
    written = json.loads((tmp_path / "x.json").read_text())
    assert [run["scenario"] for run in written["runs"]] == ["report-short"]
    assert (tmp_path / "x.svg").exists()


def test_a_server_that_fails_every_question_is_a_failure(tmp_path, capsys) -> None:
    fine = [chunk("a"), chunk(finish="stop"), DONE]
    with ScriptedServer(m={}) as server:
        server.chats(fine, (500, {"error": {"message": "broken", "code": "internal_error"}}))
        status = main(["bench", server.url, *ONE_ROW, "--out", str(tmp_path / "x")])

    assert status == 1
    assert "4× 500 internal_error" in capsys.readouterr().out


def test_keys_come_from_variables_and_go_to_their_server_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("KEY_A", "secret-a")
    fine = [chunk("a"), chunk(finish="stop"), DONE]
    with ScriptedServer(m={}) as one, ScriptedServer(m={}) as two:
        one.chats(fine)
        two.chats(fine)
        arguments = ["bench", one.url, two.url, "--key-from", "KEY_A", "--key-from", "-"]
        assert main([*arguments, *ONE_ROW, "--out", str(tmp_path / "x")]) == 0

    assert {head.get("Authorization") for head in one.headers} == {"Bearer secret-a"}
    assert {head.get("Authorization") for head in two.headers} == {None}
    assert "secret" not in (tmp_path / "x.json").read_text()


def test_a_key_is_not_shown_around(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("ONEGPU_KEY", "mine")
    with ScriptedServer(m={}) as one, ScriptedServer(m={}) as two:
        assert main(["bench", one.url, two.url, "--out", str(tmp_path / "x")]) == 2

    assert one.asked == two.asked == []
    assert "Say who gets a key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--scenarios", "shorts"], "There is no scenario shorts. There are short, agents"),
        (["--scenarios", "short@0"], "users are a number from 1 to 1000"),
        (["--scenarios", ","], "--scenarios names none"),
        (["--scenarios", "short,short@4"], "the same scenario twice"),
        (["--key-from", "NO_SUCH_VARIABLE"], "there is no such variable"),
        (["--model", "a", "--model", "b"], "given 2 times for 1 URLs"),
        (["ftp://host"], "ftp://host is not a URL of a server"),
        (["b=127.0.0.1:1", "--model", "m"], "b is there twice"),
        (["a=127.0.0.1:1", "--model", "m", "--model", "n"], "Two are called a"),
        (["--out", "/nonexistent/x"], "Nothing can be written to /nonexistent"),
    ],
)
def test_wrong_usage_says_what_to_do(arguments, says, capsys) -> None:
    given = (
        ["--model", "m"] if "--model" not in arguments and "--scenarios" not in arguments else []
    )

    assert main(["bench", "a=127.0.0.1:1", *arguments, *given]) == 2
    assert says in capsys.readouterr().err


def test_nothing_is_overwritten(tmp_path, capsys) -> None:
    (tmp_path / "x.svg").write_text("mine")

    assert main(["bench", "127.0.0.1:1", "--model", "m", "--out", str(tmp_path / "x")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_it_is_light() -> None:
    heavy = "numpy pydantic fastapi llama_cpp httpx2 jinja2"
    program = (
        "import sys\n"
        "import server.bench.session, server.bench.report, server.bench.chart, server.bench.probe\n"
        f"print([name for name in {heavy.split()} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"
