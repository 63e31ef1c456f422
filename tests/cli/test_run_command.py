"""`onegpu run`, `ps` and `stop`: which server is asked, and what the command line says."""

from __future__ import annotations

import contextlib
import io
import sys

import pytest

from server.cli import run as run_command
from server.cli.chat import owned
from server.cli.chat import url as url_module
from server.cli.main import main
from tests.cli.scripted_server import ScriptedServer, says

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def server(monkeypatch):
    """A running server at the default address."""
    with ScriptedServer(m={"state": "ready"}, other={"state": "ready"}) as made:
        monkeypatch.setattr(url_module, "DEFAULT_URL", made.url)
        made.chats(says("Blue."))
        yield made


@pytest.fixture
def piped(monkeypatch):
    def give(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))

    give("")
    return give


@pytest.fixture
def started(monkeypatch):
    """Stand in for a server of one's own; has the arguments that it was started with."""
    calls: list[list[str]] = []

    class Own(contextlib.AbstractContextManager["Own"]):
        url = NOBODY

        def __init__(self, arguments, _on_progress, _on_warning) -> None:
            calls.append(arguments)
            self._server = ScriptedServer(qwen={"state": "ready"}, second={})
            self._server.chats(says("From my own."))

        def __enter__(self):
            self.url = self._server.__enter__().url
            return self

        def __exit__(self, *_) -> None:
            self._server.__exit__()

        def ended(self) -> str | None:
            return None

    monkeypatch.setattr(owned, "OwnServer", Own)
    return calls


def status(*argv: str) -> int:
    try:
        return main(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else -1


@pytest.mark.parametrize(
    ("argv", "stdin", "asked"),
    [
        (("m", "Why is the sky blue?"), "", "Why is the sky blue?"),
        (("m", "Why", "blue?"), "", "Why blue?"),
        (("m",), "piped\n\n", "piped"),
        (("m", "Summarise:"), "a\nb\n", "Summarise:\n\na\nb"),
    ],
)
def test_one_answer(server, piped, capsys, argv, stdin, asked):
    piped(stdin)

    assert status("run", *argv) == 0

    assert capsys.readouterr() == ("Blue.\n", "")
    assert server.bodies[0]["model"] == "m"
    assert server.bodies[0]["messages"] == [{"role": "user", "content": asked}]


def test_nothing_to_answer(server, piped, capsys):
    assert status("run", "m") == 2
    assert "standard input is empty" in capsys.readouterr().err


def test_the_system_prompt_and_the_key_go_along(server, piped):
    assert status("run", "m", "Hi", "--system", "Be kind.", "--key", "k") == 0

    assert server.bodies[0]["messages"][0] == {"role": "system", "content": "Be kind."}
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer k"}


def test_an_answer_that_fails_is_an_exit_status(server, piped, capsys):
    server.chats((503, {"error": {"message": "The line is full; come back in 8 s."}}))

    assert status("run", "m", "Hi") == 1
    assert capsys.readouterr() == ("", "The line is full; come back in 8 s.\n")


def test_a_running_server_that_has_not_the_model_is_left_alone(server, piped, started, capsys):
    assert status("run", "qwen3:8b", "Hi", "--n-ctx", "512", "--kv-type", "q8_0") == 0

    assert capsys.readouterr().out == "From my own.\n"
    assert started == [["qwen3:8b", "--slots", "1", "--n-ctx", "512", "--kv-type", "q8_0"]]
    assert server.bodies == []


def test_without_a_server_one_is_started(monkeypatch, piped, started, capsys):
    monkeypatch.setattr(url_module, "DEFAULT_URL", NOBODY)

    assert status("run", "second", "Hi", "--config", "c.yaml") == 0

    assert started == [["second", "--config", "c.yaml"]], "slots are the file's to say"


def test_the_running_servers_file_is_not_loaded_twice(server, piped, started, tmp_path):
    path = tmp_path / "weights.gguf"
    path.touch()
    server.cards.insert(0, {"id": "agent", "description": "Modelfile a, FROM weights.gguf"})
    for name in ("agent", "other"):
        server.routes[f"GET /props?model={name}"] = (200, {"model_path": str(path)})

    assert status("run", str(path), "Hi") == 0
    assert server.bodies[0]["model"] == "other", "the plain model, without the agent's prompt"
    assert started == []


def test_a_file_that_is_served_but_not_loaded_is_known_by_its_name(
    server, piped, started, tmp_path
):
    path = tmp_path / "other.gguf"
    path.touch()
    told = {"error": {"message": "waits to be loaded", "code": "model_loading"}}
    for name in ("m", "other"):
        server.routes[f"GET /props?model={name}"] = (503, told)

    assert status("run", str(path), "Hi") == 0
    assert server.bodies[0]["model"] == "other"


@pytest.mark.parametrize(
    ("origin", "own"),
    [
        ("{}/agents/docs.Modelfile", False),
        ("agents/docs.Modelfile", False),
        ("../agents/docs.Modelfile", False),
        ("other/docs.Modelfile", True),
        ("/elsewhere/agents/docs.Modelfile", True),
    ],
)
def test_the_running_servers_modelfile_is_not_loaded_twice(
    server, piped, started, tmp_path, origin, own
):
    path = tmp_path / "agents" / "docs.Modelfile"
    path.parent.mkdir()
    path.touch()
    described = f"Modelfile {origin.format(tmp_path)}, FROM /m.gguf"
    server.cards.append({"id": "docs", "state": "ready", "description": described})

    assert status("run", str(path), "Hi") == 0
    assert (started != []) is own
    assert [body["model"] for body in server.bodies] == ([] if own else ["docs"])


@pytest.mark.parametrize("url", [True, False])
def test_flags_for_a_server_of_its_own_are_not_dropped(server, piped, started, capsys, url):
    there = ("--url", server.url) if url else ()

    assert status("run", "m", "Hi", "--n-ctx", "512", *there) == 2
    assert "--n-ctx would be for a server that is started" in capsys.readouterr().err
    assert (server.bodies, started) == ([], [])


def test_a_named_server_must_have_the_model(server, piped, capsys):
    assert status("run", "qwen3:8b", "Hi", "--url", server.url) == 2
    assert f"{server.url} has no model qwen3:8b. It has m, other." in capsys.readouterr().err


def test_a_named_server_must_be_there(piped, started, capsys):
    assert status("run", "m", "Hi", "--url", NOBODY) == 1
    assert f"No server answers at {NOBODY}" in capsys.readouterr().err
    assert started == []


@pytest.mark.parametrize("argv", [("run", "m", "Hi"), ("ps",), ("stop", "m")])
def test_a_key_need_not_stand_on_the_command_line(server, piped, monkeypatch, argv):
    """Command lines are seen by every user of the machine."""
    server.routes["POST /models/unload"] = (200, {"success": True})
    server.routes["GET /slots?model=m"] = (200, [])
    server.routes["GET /slots?model=other"] = (200, [])
    monkeypatch.setenv("ONEGPU_KEY", "of-the-environment")
    assert status(*argv) == 0
    piped("of-the-pipe\n")
    assert status(*argv, "--key", "-") == 0
    assert status(*argv, "--key", "of-the-flag") == 0

    keys = list(dict.fromkeys(headers["Authorization"] for headers in server.headers))
    assert keys == ["Bearer of-the-environment", "Bearer of-the-pipe", "Bearer of-the-flag"]


def test_what_follows_the_key_on_standard_input_is_the_question(server, piped):
    piped("the-key\nWhy is the sky blue?\n")
    assert status("run", "m", "--key", "-") == 0

    assert server.bodies[0]["messages"][0]["content"] == "Why is the sky blue?"
    assert server.headers[-1]["Authorization"] == "Bearer the-key"


@pytest.mark.parametrize("given", ["", "\n"])
def test_a_key_that_is_not_there_is_told(server, piped, capsys, given):
    piped(given)
    assert status("ps", "--key", "-") == 2
    assert "no key on standard input" in capsys.readouterr().err


def test_an_empty_variable_is_no_key(server, piped, monkeypatch):
    monkeypatch.setenv("ONEGPU_KEY", "")
    assert status("ps") == 0
    assert "Authorization" not in server.headers[-1]


def test_a_server_that_wants_a_key_is_not_passed_over(server, piped, started, capsys):
    server.routes["GET /v1/models"] = (401, {})

    assert status("run", "m", "Hi") == 1
    assert "It asks for a key: ONEGPU_KEY, or --key." in capsys.readouterr().err
    assert started == []


def test_a_model_is_loaded_first(server, piped, capsys, monkeypatch):
    states = iter(
        [
            {"state": "unloading"},
            {"state": "unloaded"},
            {"state": "loading", "load_progress": 0.5},
            {"state": "ready"},
        ]
    )
    server.routes["POST /models/load"] = (200, {"success": True})
    looked = server.routes["GET /v1/models"]

    def next_state():
        server.cards[0].update(next(states, {"state": "ready"}))
        return looked()

    server.routes["GET /v1/models"] = next_state

    assert status("run", "m", "Hi") == 0
    assert ("POST /models/load", {"model": "m"}) in server.asked
    assert capsys.readouterr().out == "Blue.\n"


def test_a_model_that_cannot_be_loaded(server, piped, capsys):
    server.cards[0].update(state="failed", error="it does not fit")

    assert status("run", "m", "Hi") == 1
    assert capsys.readouterr().err == "onegpu: m could not be loaded: it does not fit.\n"


def test_ps_lists_what_is_there(server, capsys, monkeypatch):
    now = 1_800_000_000.0
    monkeypatch.setattr("time.time", lambda: now)
    memory = {"gpu": 21_300_000_000, "cpu": 40_000_000}
    shared = {
        "weights": "big",
        "state": "ready",
        "slots": 2,
        "memory": memory,
        "context_window": 8192,
    }
    server.cards[:] = [
        {"id": "big", **shared, "expires_at": now + 300},
        {"id": "agent", **shared, "context_window": 4096, "expires_at": None},
        {
            "id": "small",
            "state": "loading",
            "load_progress": 0.42,
            "slots": 4,
            "memory": {"cpu": 5_000_000},
        },
        {"id": "gone", "state": "unloaded", "slots": 4, "memory": {"gpu": 0, "cpu": 5_000_000}},
    ]
    server.routes["GET /slots?model=big"] = (
        200,
        [{"is_processing": True}, {"is_processing": False}],
    )

    assert status("ps") == 0

    lines = [line.split("   ") for line in capsys.readouterr().out.splitlines()]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert rows[0] == ["NAME", "STATE", "MEMORY", "CONTEXT", "RUNNING", "UNTIL"]
    assert rows[1][:5] == ["big", "ready", "21.3 GB GPU + 40.0 MB CPU", "8192", "1/2"]
    assert rows[1][5].endswith("(in 5 min)")
    assert rows[2] == ["agent", "ready", "21.3 GB GPU + 40.0 MB CPU", "4096", "1/2", "stays"]
    assert rows[3] == ["small", "loading 42%", "5.0 MB CPU", "-", "-", "-"]
    assert rows[4] == ["gone", "unloaded", "(5.0 MB CPU)", "-", "-", "-"]


def test_ps_with_a_key_that_may_not_see_slots(server, capsys):
    server.cards[:] = [{"id": "m", "state": "ready", "slots": 2}]
    server.routes["GET /slots?model=m"] = (403, {})

    assert status("ps") == 0
    assert "?/2" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [("ps",), ("stop", "m")])
def test_without_a_server(argv, capsys):
    assert status(*argv, "--url", NOBODY) == 1
    assert "Start one with `onegpu serve MODEL`, or give another URL." in capsys.readouterr().err


@pytest.mark.parametrize("argv", [("ps",), ("stop", "m")])
def test_without_the_key(server, argv, capsys):
    server.routes["GET /v1/models"] = (401, {})

    assert status(*argv) == 1
    assert "ONEGPU_KEY" in capsys.readouterr().err


def test_stop_unloads(server, capsys):
    server.routes["POST /models/unload"] = (200, {"success": True})

    assert status("stop", "m") == 0
    assert server.asked[-1] == ("POST /models/unload", {"model": "m"})
    assert "m is being unloaded" in capsys.readouterr().out


def test_stop_names_what_goes_along(server, capsys):
    server.routes["POST /models/unload"] = (200, {"success": True})
    server.cards.append({"id": "agent", "state": "ready", "weights": "m"})
    server.cards[0]["weights"] = "m"

    assert status("stop", "agent") == 0
    assert "With it goes what shares its weights: m.\n" in capsys.readouterr().out


def test_stop_of_what_is_not_there(server, capsys):
    server.cards[1].update(state="unloaded")
    server.cards.append({"id": "broken", "state": "failed"})

    assert status("stop", "other") == 0
    assert status("stop", "broken") == 0
    assert status("stop", "nothing") == 2
    assert status("stop", "m") == 1
    told = capsys.readouterr()
    assert told.out == "other is not loaded.\nbroken is not loaded.\n"
    assert "serves no model nothing. It serves m, other, broken." in told.err
    assert "cannot unload models" in told.err


def test_the_default_address_is_that_of_serve():
    from server.settings import Settings

    served = Settings().server
    assert f"http://{served.host}:{served.port}" == url_module.DEFAULT_URL
    assert run_command._DESCRIPTION.count(url_module.DEFAULT_URL) == 1
