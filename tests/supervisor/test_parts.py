"""The supervisor's parts that need no process."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import socket
import subprocess
import sys
import threading

import pytest

from server.supervisor.backoff import Backoff
from server.supervisor.notify import Notifier
from server.supervisor.page import Cause, Page, WorkerState, shared_file
from server.supervisor.supervisor import End
from server.supervisor.watchdog import Watchdog
from server.supervisor.worker import NATIVE, describe


@pytest.fixture
def page():
    descriptor = shared_file("test", Page.SIZE)
    made = Page(descriptor)
    other = Page(descriptor)
    os.close(descriptor)
    yield made, other
    made.close()
    other.close()


def test_both_sides_see_one_page(page) -> None:
    mine, theirs = page
    mine.state, mine.beats, mine.progress = WorkerState.READY, 7, 0.25
    mine.fault, mine.last_words = "dead: ä" + "x" * 1000, "öl" * 2000

    assert (theirs.state, theirs.beats, theirs.progress) == (WorkerState.READY, 7, 0.25)
    assert theirs.fault == "dead: ä" + "x" * (447 - len("dead: ä".encode()))
    assert theirs.last_words == "öl" * 341  # a character is not cut in half

    theirs.renew({Cause.KILLED: 3, Cause.EXITED: 1}, 2)

    assert (mine.state, mine.beats, mine.fault) == (WorkerState.STARTING, 0, "")
    assert mine.restarts == {"crashed": 0, "killed": 3, "unfit": 0, "exited": 1}
    assert mine.failed == 2


@pytest.mark.parametrize(
    ("code", "reason", "cause"),
    [
        (-signal.SIGABRT, None, Cause.CRASHED),
        (-signal.SIGSEGV, None, Cause.CRASHED),
        (-signal.SIGKILL, None, Cause.KILLED),
        (-signal.SIGTERM, None, Cause.KILLED),
        (-signal.SIGKILL, "its event loop stood still for 61 s", Cause.UNFIT),
        (0, None, Cause.EXITED),
        (1, "it could not be started: Too many open files", Cause.EXITED),
    ],
)
def test_an_end_is_counted_by_its_cause(code, reason, cause) -> None:
    assert End(code, 1.0, "", reason).cause is cause


def test_a_text_is_replaced_by_a_shorter_one(page) -> None:
    mine, theirs = page
    mine.fault = "a long one"
    mine.fault = "short\0er"
    assert theirs.fault == "shorter"


def test_waits_double_until_a_worker_lasts() -> None:
    backoff = Backoff(longest=6.0, settled=10.0)
    assert [backoff.after(None) for _ in range(6)] == [0, 1, 2, 4, 6, 6]
    assert backoff.after(9.9) == 6
    assert backoff.after(10.0) == 0
    assert backoff.after(0.0) == 1


def test_many_deaths_do_not_overflow() -> None:
    backoff = Backoff()
    assert [backoff.after(None) for _ in range(2000)][-1] == 30


def test_a_loop_that_turns_is_left_alone_and_one_that_stands_is_not() -> None:
    watchdog = Watchdog()
    for second in range(100):
        assert watchdog.look(second, second, "", 5.0) is None
    for second in range(100, 105):
        assert watchdog.look(second, 99, "", 5.0) is None
    assert watchdog.look(105.5, 99, "", 5.0) == "its event loop stood still for 6 s"


def test_a_machine_that_slept_has_not_waited() -> None:
    watchdog = Watchdog()
    assert watchdog.look(0.0, 1, "", 5.0) is None
    assert watchdog.look(10_000.0, 1, "", 5.0) is None
    assert watchdog.look(10_001.0, 2, "", 5.0) is None


def test_a_fault_may_pass_before_it_counts() -> None:
    watchdog = Watchdog()
    assert watchdog.look(0.0, 0, "stalled", 60.0) is None
    assert watchdog.look(2.0, 1, "stalled", 60.0) is None
    assert watchdog.look(3.0, 2, "", 60.0) is None
    assert watchdog.look(4.0, 3, "stalled", 60.0) is None
    assert watchdog.look(6.0, 4, "stalled", 60.0) == "stalled"


def test_who_is_killed_from_outside_has_not_crashed() -> None:
    assert signal.SIGABRT in NATIVE
    assert not NATIVE & {signal.SIGKILL, signal.SIGTERM, signal.SIGINT}


def test_ends_have_names() -> None:
    assert describe(3) == "ended with status 3"
    assert describe(-6) == "was killed by SIGABRT"
    assert describe(-99) == "was killed by signal 99"


@pytest.mark.parametrize(
    ("environ", "every"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, None),  # nobody to tell
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000"}, 1.5),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"}, None),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_asked(environ, every) -> None:
    assert Notifier(environ).watchdog_every == every


def test_nobody_to_notify_is_no_error() -> None:
    Notifier({}).ready("x")
    Notifier({"NOTIFY_SOCKET": "/nonexistent/socket"}).ready("x")


_WITH_A_TERMINAL = """
import os, signal
from server.supervisor.terminal import Terminal
{before}
terminal = Terminal()
seen = []
signal.signal(signal.SIGHUP, lambda *_: seen.append(terminal.gone()))
os.kill(os.getpid(), signal.SIGHUP)
os.write({out}, b"." )
while len(seen) < 2:
    signal.pause()
os.write({out}, f"{{seen}}".encode())
"""


def on_a_terminal_that_closes(before: str = "") -> str:
    """Return whether the terminal seemed gone at a SIGHUP before its end, and at the one for it."""
    out, inside = os.pipe()
    pid, terminal = pty.fork()
    if pid == 0:
        script = _WITH_A_TERMINAL.format(before=before, out=inside)
        os.set_inheritable(inside, True)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's children would ignore it
        os.execv(sys.executable, [sys.executable, "-c", script])
    os.close(inside)
    with os.fdopen(out, "rb") as pipe:
        assert pipe.read(1) == b"."
        os.close(terminal)
        if before:
            os.kill(pid, signal.SIGHUP)
        told = pipe.read().decode()
    os.waitpid(pid, 0)
    return told


def test_a_hangup_of_the_terminal_is_told_from_one_that_was_sent() -> None:
    assert on_a_terminal_that_closes() == "[False, True]"


def test_who_was_started_to_outlive_the_terminal_does_not_miss_it() -> None:
    ignoring = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    assert on_a_terminal_that_closes(ignoring).startswith("[False, False")


def test_it_imports_nothing_heavy() -> None:
    script = (
        "import sys, server.supervisor.supervisor, server.supervisor.listening\n"
        "own = {name for name in sys.modules if name.startswith('server.')}\n"
        "assert all(n.startswith(('server.supervisor', 'server.core')) for n in own), own\n"
        "heavy = {'numpy', 'pydantic', 'fastapi', 'uvicorn', 'llama_cpp', 'yaml'}\n"
        "assert not heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_queue_that_is_full_for_a_moment_loses_no_readiness(tmp_path) -> None:
    address = str(tmp_path / "notify")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others,
    ):
        systemd.bind(address)
        systemd.settimeout(10)
        others.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                others.sendto(b"X=1", address)
                sent += 1
        sender = threading.Thread(target=Notifier({"NOTIFY_SOCKET": address}).ready, args=("up",))
        sender.start()
        sender.join(0.2)  # whoever does not wait has given up by now
        heard = [systemd.recv(100) for _ in range(sent + 1)]
        sender.join()
    assert heard[-1] == b"READY=1\nSTATUS=up"


def test_a_freeze_of_the_whole_machine_is_not_the_engines_fault() -> None:
    """A step of 20 s was under way when everything stood still for ten minutes."""
    watchdog, late = Watchdog(), "The engine has work but has not finished a step for 600 s."
    assert watchdog.look(0.0, 1, "", 60.0) is None
    for second in range(20):
        assert watchdog.look(600.0 + second, 2 + second, late, 60.0) is None
    assert watchdog.look(620.0, 30, "", 60.0) is None


def test_a_fault_that_outlasts_a_freeze_counts_in_the_end() -> None:
    watchdog = Watchdog()
    watchdog.look(0.0, 1, "", 10.0)
    seen = [watchdog.look(600.0 + second, 2 + second, "dead", 10.0) for second in range(20)]
    assert seen[:10] == [None] * 10
    assert seen[-1] == "dead"
