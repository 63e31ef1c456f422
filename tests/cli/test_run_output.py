"""`onegpu run` and `ps` on terminals, pipes, disks and locales that are less than they wish for."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from server.cli.chat import terminal as terminal_module
from server.cli.chat.client import Client
from server.cli.chat.conversation import Conversation
from server.cli.chat.repl import Repl
from server.cli.chat.terminal import Terminal, read_message
from server.cli.main import main
from server.core.errors import ConfigError
from tests.cli.pseudo_terminal import PseudoTerminal
from tests.cli.scripted_server import DONE, ScriptedServer, chunk, says


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def server():
    with ScriptedServer(m={"state": "ready"}) as made:
        made.chats(says("Blue."))
        yield made


@pytest.fixture
def asked(server):
    """Ask once on a screen with the given environment; return what it shows."""

    def ask(**environment):
        screen = Screen()
        terminal = Terminal(screen, screen, environment)
        Repl(Client(server.url), Conversation("m"), terminal).ask("Hi")
        return screen.getvalue()

    return ask


THOUGHTS = [b": queued 1/2\n\n", chunk(reasoning_content="hm"), chunk("Yes"), DONE]


def test_without_colours_thoughts_are_told_in_words(server, asked):
    server.chats(THOUGHTS)

    assert asked(NO_COLOR="1") == "\r\x1b[Kqueued 1/2\r\x1b[K(thinking)\nhm\n(answer)\nYes\n"
    assert asked(TERM="dumb") == "(thinking)\nhm\n(answer)\nYes\n"
    assert "\x1b[2mhm" in asked(NO_COLOR="", TERM="xterm")


def test_the_terminal_is_left_as_it_was(server, monkeypatch):
    """Ctrl-C while a model loads: what the shell writes next must not stand behind a status."""
    screen = Screen()
    for stream in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, stream, screen)
    monkeypatch.setenv("TERM", "xterm")
    server.cards[0].update(state="loading")

    def interrupted(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupted)

    assert main(["run", "m", "Hi", "--url", server.url]) == 130
    assert screen.getvalue().endswith("loading m\x1b[0m\r\x1b[K")


def test_thoughts_without_an_answer_announce_none(server, asked):
    server.chats([chunk(reasoning_content="hm"), chunk(finish="length"), DONE])

    assert "(answer)" not in asked(TERM="dumb")


def test_a_status_keeps_to_its_line_in_any_script(monkeypatch):
    monkeypatch.setattr(terminal_module.Terminal, "_width", lambda _: 10)
    screen = Screen()

    Terminal(screen, screen, {}).status("正在加载模型 m.gguf")

    assert screen.getvalue() == "\r\x1b[K\x1b[2m正在加载模\x1b[0m"


@pytest.mark.parametrize("redirected", [b"caf\xe9", b"\x00\xff\xfe"])
def test_input_that_is_no_text_is_refused(monkeypatch, capsys, redirected):
    stdin = io.TextIOWrapper(io.BytesIO(redirected), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)

    assert main(["run", "m"]) == 2
    assert "not text in UTF-8" in capsys.readouterr().err


def test_a_closed_standard_input_is_an_empty_one(server, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)

    assert main(["run", "m", "Hi", "--url", server.url]) == 0
    assert capsys.readouterr().out == "Blue.\n"


def test_bytes_that_the_locale_misread_are_put_right(monkeypatch):
    """A C locale hands over each byte of a character as half of a surrogate pair."""
    typed = iter(["你好".encode().decode("ascii", "surrogateescape"), "\udce9"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))

    assert read_message() == "你好"
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_message()


def test_prompts_do_not_go_into_a_file(monkeypatch, capsys):
    stdin = Screen('"""one\ntwo"""\n')
    monkeypatch.setattr(sys, "stdin", stdin)

    assert read_message() == "one\ntwo"
    with pytest.raises(EOFError):
        read_message()
    assert capsys.readouterr() == ("", ">>> ... >>> ")


def onegpu(*argv: str, stdout: int, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "server", *argv],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
    )


@pytest.mark.parametrize("argv", [("run", "m", "Hi"), ("ps",)])
def test_a_reader_that_has_enough_is_no_failure_to_speak_of(server, argv):
    read, write = os.pipe()
    os.close(read)
    done = onegpu(*argv, "--url", server.url, stdout=write)
    os.close(write)

    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("argv", [("run", "m", "Hi"), ("ps",)])
def test_a_full_disk_is_said(server, argv):
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - no regular file
        done = onegpu(*argv, "--url", server.url, stdout=full.fileno())

    assert done.returncode == 1
    assert done.stderr == b"onegpu: The output cannot be written: No space left on device.\n"


def test_an_answer_in_another_script_than_the_locales(server):
    server.chats(says("Bl\u0101, \ud83d"))
    done = onegpu(
        *("run", "m", "Hi", "--url", server.url),
        stdout=subprocess.PIPE,
        PYTHONIOENCODING="latin-1",
    )

    assert (done.returncode, done.stdout) == (0, b"Bl?, ?\n")


def test_no_color_is_obeyed(server, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    with PseudoTerminal("run", "m", "--url", server.url, home=tmp_path) as terminal:
        assert "\x1b[2m" not in terminal.until(">>> ")


def test_text_in_wide_characters_is_edited_and_answered(server, tmp_path):
    server.chats(says("你好!"))
    with PseudoTerminal("run", "m", "--url", server.url, home=tmp_path) as terminal:
        terminal.until(">>> ")
        terminal.type("你们\x7f好\n")  # a backspace takes away one character, not one byte
        terminal.until("你好!")
        terminal.until(">>> ")
        terminal.type("/bye\n")
        assert terminal.end() == 0

    assert server.bodies[0]["messages"][0]["content"] == "你好"
