"""The chat in the terminal: what is sent, what is shown, what the commands do."""

from __future__ import annotations

import builtins
import io
import json

import pytest

from server.cli.chat.client import Client
from server.cli.chat.conversation import Conversation
from server.cli.chat.repl import Repl
from server.cli.chat.terminal import Terminal
from tests.cli.scripted_server import DONE, ScriptedServer, chunk, says


class Screen(io.StringIO):
    """A stream that claims to be a terminal, or not."""

    def __init__(self, *, tty: bool = True) -> None:
        super().__init__()
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


@pytest.fixture
def server():
    with ScriptedServer(
        m={"context_window": 4096, "state": "ready", "meta": {"n_vocab": 7}}
    ) as made:
        yield made


@pytest.fixture
def typed(monkeypatch):
    """Lines that a person types; an exception is raised, the end is Ctrl-D."""
    lines: list[str | type[BaseException]] = []

    def read(_prompt: str = "") -> str:
        if not lines:
            raise EOFError
        line = lines.pop(0)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(builtins, "input", read)
    return lines


@pytest.fixture
def chat(server, typed):
    """Run a chat of the given lines; return what was shown."""

    def run(*lines, tty=True, **conversation):
        typed[:] = lines
        screen = Screen(tty=tty)
        talk = Conversation("m", **conversation)
        Repl(Client(server.url), talk, Terminal(screen, screen)).run()
        return screen.getvalue()

    return run


def test_the_whole_chat_is_sent_each_time(server, chat):
    server.chats(says("Hel", "lo!"), says("Fine."))

    shown = chat("Hi", "How are you?", "/bye", "never sent")

    assert "Hello!\n" in shown
    assert "Fine.\n" in shown
    assert server.bodies == [
        {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hi"}]},
        {
            "model": "m",
            "stream": True,
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello!"},
                {"role": "user", "content": "How are you?"},
            ],
        },
    ]


def test_several_lines_between_marks_are_one_message(server, chat):
    server.chats(says("ok"))

    chat('"""def f():', "  pass", 'f()"""', "   ", '"""one line"""')

    contents = [body["messages"][-1]["content"] for body in server.bodies]
    assert contents == ["def f():\n  pass\nf()", "one line"]


def test_what_ollamas_chat_calls_it_is_understood(server, chat):
    server.chats(says("ok"))

    chat(
        '/set system """Be kind.',
        'Be brief."""',
        "/set parameter temperature 0.5",
        '/set parameter stop "a b"',
        "1",
        '/system "Be loud."',
        "2",
        '/set system ""',
        "3",
    )

    assert server.bodies[0]["stop"] == ["a b"]
    assert server.bodies[0]["temperature"] == 0.5
    first = [body["messages"][0]["content"] for body in server.bodies]
    assert first == ["Be kind.\nBe brief.", "Be loud.", "1"]


def test_settings_and_system_prompt_go_along(server, chat):
    server.chats(says("ok"))

    shown = chat(
        "/system Be kind.",
        "/set temperature 0",
        "/set num_predict 5",
        "/set stop END",
        "/set think off",
        "/set top_k 3",
        "/set top_k default",
        "/set",
        "Hi",
        '/system ""',
        "/system",
        "Again",
    )

    first, second = server.bodies
    assert first == {
        "model": "m",
        "stream": True,
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
        "temperature": 0.0,
        "max_tokens": 5,
        "stop": ["END"],
        "enable_thinking": False,
    }
    assert second["messages"][0]["role"] == "user"
    assert "Set: temperature 0.0, max_tokens 5" in shown
    assert "No system prompt of this chat's own." in shown


@pytest.mark.parametrize(
    ("line", "says_"),
    [
        ("/sett x", "There is no command /sett; did you mean /set?"),
        ("/quux", "There is no command /quux. /help lists them"),
        ("/set heat 1", "There is no setting 'heat'. There is temperature, top_p"),
        ("/set temperature hot", "temperature must be a number (or default), not 'hot'"),
        ("/set top_k 1.5", "top_k must be a whole number"),
        ("/set think maybe", "think must be on or off"),
        ("/set seed", "/set seed needs a value"),
        ("/save", "/save needs the name of a file"),
        ("/load /nowhere/x.json", "cannot be read: No such file"),
        ("/save /nowhere/x.json", "cannot be written"),
        ("/help", "/bye                  leave (Ctrl-D too)"),
        ("/show", "context_window   4096"),
        ("/show", "n_vocab          7"),
    ],
)
def test_commands_answer_without_asking_the_model(server, chat, line, says_):
    assert says_ in chat(line)
    assert server.bodies == []


def test_clear_forgets_the_chat_only(server, chat):
    server.chats(says("ok"))

    shown = chat("Hi", "/set seed 1", "/clear", "Bye", system="s")

    assert "Forgot 2 messages." in shown
    assert server.bodies[1] == {
        "model": "m",
        "stream": True,
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Bye"}],
        "seed": 1,
    }


def test_a_saved_chat_goes_on(server, chat, tmp_path):
    server.chats(says("ok"))
    path = tmp_path / "chat.json"

    chat("/set seed 3", "Hi", f"/save {path}", f"/save {path}", system="s")
    shown = chat(f"/load {path}", "More")

    assert "Loaded 2 messages" in shown
    assert [each["content"] for each in server.bodies[1]["messages"]] == ["s", "Hi", "ok", "More"]
    assert server.bodies[1]["seed"] == 3
    assert [each.name for each in tmp_path.iterdir()] == ["chat.json"]


@pytest.mark.parametrize(
    ("content", "says_"),
    [
        ("no JSON", "is not a saved chat"),
        ("[]", "it has no list of messages"),
        ('{"messages": [{"role": "user"}]}', "message 1 has no text"),
        ('{"messages": [{"role": "x", "content": ""}]}', "message 1 has no role that is known"),
        ('{"messages": [], "settings": {"heat": 1}}', "unknown setting 'heat'"),
        ('{"messages": [], "system": 1}', "its system prompt is not text"),
    ],
)
def test_files_that_are_no_chats_are_neither_read_nor_replaced(
    server, chat, tmp_path, content, says_
):
    server.chats(says("ok"))
    path = tmp_path / "precious"
    path.write_text(content, encoding="utf-8")

    shown = chat(f"/load {path}", f"/save {path}", "Hi")

    assert says_ in shown
    assert "exists and is not a saved chat" in shown
    assert path.read_text(encoding="utf-8") == content
    assert len(server.bodies[0]["messages"]) == 1


def test_thinking_is_dimmed_wherever_it_comes_from(server, chat):
    server.chats(
        [
            chunk(reasoning_content="hm "),
            chunk(reasoning_content="ok"),
            chunk("Yes"),
            chunk(finish="stop"),
            DONE,
        ],
        says("<thi", "nk>\nwell", "</think>\n", "\nNo"),
    )

    shown = chat("1", "2")

    assert "\x1b[2mhm ok\x1b[0m\nYes\n" in shown
    assert "\x1b[2mwell\x1b[0m\nNo\n" in shown


def test_a_failed_question_is_not_kept(server, chat):
    refusal = {"error": {"message": "too long", "code": "context_length_exceeded"}}
    server.chats((400, refusal), says("ok"))

    shown = chat("long", "short")

    assert "too long (/clear forgets the chat.)" in shown
    assert [each["content"] for each in server.bodies[1]["messages"]] == ["short"]


def test_a_model_that_is_being_loaded_is_asked_again(server):
    loading = {"error": {"message": "The model 'm' is loading, 50% done.", "code": "model_loading"}}
    told = b"data: " + json.dumps(loading).encode() + b"\n\n"
    server.chats((503, loading), [b": queued 1/1\n\n", told], says("ok"))
    server.retry_after = "7"
    screen = Screen()
    pauses: list[float] = []

    status = Repl(
        Client(server.url), Conversation("m"), Terminal(screen, screen), sleep=pauses.append
    ).ask("Hi")

    assert status == 0
    assert "loading, 50% done" in screen.getvalue()
    assert screen.getvalue().endswith("ok\n")
    assert [body["messages"] for body in server.bodies] == [[{"role": "user", "content": "Hi"}]] * 3
    assert pauses == [5.0, 1.0], "as the server asks, but not for long without looking"


def test_a_server_that_goes_away_is_told_by_whoever_knows(server, typed):
    server.chats([chunk("Half an")], (500, {"error": {"message": "no"}}), says("ok"))
    screen, reasons = Screen(), ["it was killed", "never asked"]
    typed[:] = ["1", "2"]

    Repl(
        Client(server.url),
        Conversation("m"),
        Terminal(screen, screen),
        ended=lambda: reasons.pop(0),
    ).run()

    assert "Half an\nit was killed\n" in screen.getvalue()
    assert reasons == ["never asked"], "a server that answers is there"


def test_what_came_before_a_failure_is_kept(server, chat):
    broken = [chunk("Half an"), b'data: {"error": {"message": "the engine is dead"}}\n\n']
    server.chats(broken, says("ok"))

    shown = chat("1", "2")

    assert "Half an\nthe engine is dead\n" in shown
    assert server.bodies[1]["messages"][1] == {"role": "assistant", "content": "Half an"}


def test_ctrl_c_ends_the_answer_and_not_the_chat(server, chat, monkeypatch):
    server.chats(says("Half ", "an"), says("ok"))
    asked = Client.chat

    def interrupted(self, body):
        pieces = asked(self, body)
        if len(body["messages"]) == 1:
            yield next(pieces)
            raise KeyboardInterrupt
        yield from pieces

    monkeypatch.setattr(Client, "chat", interrupted)

    shown = chat(KeyboardInterrupt, "1", "2")

    assert "/bye or Ctrl-D leaves." in shown
    assert "Half \n\x1b[2m(interrupted)" in shown
    assert server.bodies[1]["messages"][1] == {"role": "assistant", "content": "Half "}


def test_what_there_is_to_say_about_an_answer(server, chat):
    calls = [
        chunk(tool_calls=[{"index": 0, "id": "c", "function": {"name": "add", "arguments": ""}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"a": 1}'}}]),
        chunk(finish="tool_calls"),
        DONE,
    ]
    dropped = chunk("ok", extra={"onegpu": {"dropped_turns": 2}})
    server.chats(calls, [dropped, chunk(finish="length"), DONE])

    shown = chat("1", "2")

    assert '(calls add({"a": 1}))' in shown
    assert "(cut off: max_tokens" in shown
    assert "(the oldest 2 turns were left out to fit the context)" in shown


def test_a_place_in_the_line_is_shown_and_taken_away(server, chat):
    server.chats([b": queued 3/12, about 8 s\n\n", *says("ok")])

    shown = chat("1")

    assert "\r\x1b[K\x1b[2mqueued 3/12, about 8 s\x1b[0m\r\x1b[Kok\n" in shown


def test_a_model_cannot_steer_the_terminal(server, chat):
    server.chats(says("a\x1b]0;title\x07b\x9bc\rd\te\n"))

    assert "a\ufffd]0;title\ufffdb\ufffdc\ufffdd\te\n" in chat("1")


def test_a_file_gets_the_answer_alone(server):
    server.chats([chunk(reasoning_content="hm"), chunk("Yes\x1b"), chunk(finish="length"), DONE])
    out, err = Screen(tty=False), Screen(tty=False)

    status = Repl(Client(server.url), Conversation("m"), Terminal(out, err)).ask("Hi")

    assert status == 0
    assert out.getvalue() == "Yes\x1b\n"
    assert err.getvalue() == "hm\n(cut off: max_tokens or the end of the context)\n"


def test_a_saved_chat_is_plain_json(server, chat, tmp_path):
    server.chats(says("日本"))
    chat("Hi", f"/save {tmp_path / 'c.json'}")

    document = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))

    assert document["model"] == "m"
    assert document["messages"][1] == {"role": "assistant", "content": "日本"}
