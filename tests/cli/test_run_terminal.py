"""`onegpu run` as a person meets it: in a pseudo-terminal."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from tests.cli.pseudo_terminal import PseudoTerminal, Watched
from tests.cli.scripted_server import ScriptedServer, chunk, says
from tests.e2e.live import DEMO

UP = "\x1b[A"
CTRL_C, CTRL_D = "\x03", "\x04"


def test_ctrl_c_ends_the_answer_and_the_history_outlives_the_program(tmp_path):
    asked = threading.Event()
    hold = threading.Event()

    def answer():
        yield chunk("Once upon")
        asked.set()
        hold.wait(60)
        yield from says("never seen")

    with ScriptedServer(m={"state": "ready"}) as server:
        server.chats((200, answer()), says("ok"))
        with PseudoTerminal("run", "m", "--url", server.url, home=tmp_path) as terminal:
            terminal.until(">>> ")
            terminal.type("Tell me a story\n")
            terminal.until("Once upon")
            assert asked.wait(60)
            terminal.type(CTRL_C)
            terminal.until("(interrupted)")
            hold.set()
            terminal.until(">>> ")
            terminal.type("Shorter\n")
            terminal.until("ok")
            terminal.until(">>> ")
            terminal.type(CTRL_C)
            terminal.until("/bye or Ctrl-D leaves.")
            terminal.until(">>> ")
            terminal.type(CTRL_D)
            assert terminal.end() == 0

        with PseudoTerminal("run", "--url", server.url, home=tmp_path) as terminal:
            terminal.until(">>> ")
            terminal.type(UP + UP + "\n")
            terminal.until("ok")
            terminal.until(">>> ")
            terminal.type("/bye\n")
            assert terminal.end() == 0

    contents = [[each["content"] for each in body["messages"]] for body in server.bodies]
    assert contents == [
        ["Tell me a story"],
        ["Tell me a story", "Once upon", "Shorter"],
        ["Tell me a story"],
    ]


@pytest.mark.slow
@pytest.mark.native
def test_a_chat_with_a_server_of_its_own(tmp_path):
    with PseudoTerminal("run", str(DEMO), home=tmp_path) as terminal:
        terminal.until(">>> ")
        [child] = map(Watched, terminal.children())
        terminal.type("/set temperature 0\n")
        terminal.until("temperature: 0.0")
        terminal.until(">>> ")
        terminal.type(CTRL_C)  # reaches all processes of this terminal; the server is none of them
        terminal.until("/bye or Ctrl-D leaves.")
        terminal.until(">>> ")
        terminal.type("What is 2 + 3?\n")
        answer = terminal.until(">>> ")
        assert "2 + 3 = " in answer
        terminal.type("/show\n")
        assert "qwen3" in terminal.until(">>> ")
        terminal.type("/bye\n")

        assert terminal.end() == 0
        assert child.ended()


@pytest.mark.slow
@pytest.mark.native
def test_what_a_modelfile_warns_of_is_not_lost(tmp_path):
    path = tmp_path / "a.Modelfile"
    path.write_text(f"FROM {DEMO}\nPARAMETER num_ctx 512\nPARAMETER num_gpu 1", encoding="utf-8")

    with PseudoTerminal("run", str(path), home=tmp_path) as terminal:
        assert "num_gpu counts layers, not cards" in terminal.until(">>> ")


@pytest.mark.slow
@pytest.mark.native
def test_a_server_of_its_own_that_dies_is_told(tmp_path):
    with PseudoTerminal("run", str(DEMO), home=tmp_path) as terminal:
        terminal.until(">>> ")
        [child] = terminal.children()
        os.kill(child, signal.SIGKILL)
        terminal.type("Hello\n")
        terminal.until("The server of this chat has ended, killed by SIGKILL. It said last:")
        terminal.until(">>> ")
        terminal.type("/bye\n")
        assert terminal.end() == 0


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_the_server_goes_with_the_chat_however_it_ends(tmp_path, number):
    with PseudoTerminal("run", str(DEMO), home=tmp_path) as terminal:
        terminal.until(">>> ")
        [child] = map(Watched, terminal.children())
        os.kill(terminal.pid, number)

        assert child.ended()
        assert terminal.end() == (-number if number == signal.SIGKILL else 128 + number)


@pytest.mark.slow
@pytest.mark.native
def test_a_server_that_does_not_start_says_why(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(100))

    with PseudoTerminal("run", str(path), home=tmp_path) as terminal:
        shown = terminal.until("GGUF version 0")
        assert "The server did not start:" in shown
        assert terminal.end() == 1
