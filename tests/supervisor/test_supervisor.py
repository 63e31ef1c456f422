"""The supervisor's loop, over real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from server.core.errors import OnegpuError
from server.supervisor.backoff import Backoff
from server.supervisor.page import WorkerState
from server.supervisor.responder import Responder
from tests.supervisor.workers import Scripted

READY_AND_STOP = "ready(); stop()"


def gone(pid: int) -> bool:
    """Whether no process has this id, zombies of others not counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def run(*scripts: str, **environ: str) -> int:
    scripted = Scripted(*scripts, **environ)
    status = asyncio.run(scripted.run())
    assert scripted.left == 0
    return status


def test_what_cannot_start_is_told_once() -> None:
    assert run("sys.exit(2)") == 2


@pytest.mark.parametrize("number", ["SIGKILL", "SIGABRT", "SIGSEGV", "SIGTERM"])
def test_a_worker_that_was_ready_is_replaced(number) -> None:
    assert run(f"ready(); os.kill(os.getpid(), signal.{number})", READY_AND_STOP) == 0


def test_a_worker_that_ends_by_itself_is_replaced_and_a_later_start_may_fail() -> None:
    assert run("ready(); sys.exit(0)", "sys.exit(2)", READY_AND_STOP) == 0


def test_a_native_message_and_the_restart_are_logged(caplog) -> None:
    script = "ready(); page.keep_last_words('llama.cpp aborted: it hurts'); os.abort()"

    assert run(script, READY_AND_STOP) == 0

    assert "was killed by SIGABRT (llama.cpp aborted: it hurts)" in caplog.text


def test_a_crash_is_traced_in_its_own_thread_alone(capfd) -> None:
    """Other threads run on: reading their stacks can crash again, and hide the first signal."""
    script = """
import threading

def bystander(begun):
    begun.set()
    time.sleep(600)

def culprit():
    os.abort()

begun = threading.Event()
threading.Thread(target=bystander, args=[begun], daemon=True).start()
begun.wait()
ready()
culprit()
"""
    assert run(script, READY_AND_STOP) == 0

    told = capfd.readouterr().err
    assert "in culprit" in told
    assert "in bystander" not in told


def test_a_crash_while_it_stops_is_told(caplog) -> None:
    script = """
page.keep_last_words('it hurts')
signal.signal(signal.SIGTERM, lambda *_: os.abort())
ready()
os.kill(os.getppid(), signal.SIGTERM)
signal.pause()
"""
    assert run(script) == 128 + signal.SIGTERM

    assert "was killed by SIGABRT (it hurts) while it was stopping" in caplog.text


def test_three_deaths_before_any_was_ready_are_the_end() -> None:
    die = "page.keep_last_words('no memory'); os.abort()"

    with pytest.raises(OnegpuError, match=r"killed by SIGABRT \(no memory\), 3 times in a row"):
        run(die, die, die)


def test_the_configuration_that_one_worker_kept_is_there_for_the_next() -> None:
    keep = "me.keep(b'a longer one'); me.keep(b'short'); ready(); sys.exit(1)"

    assert run(keep, "ready(); stop(len(me.configuration))") == len(b"short")


def test_an_event_loop_that_stands_still_is_ended_with_a_trace(caplog, capfd) -> None:
    assert run("ready(0.1); time.sleep(600)", READY_AND_STOP) == 0

    assert "its event loop stood still" in caplog.text
    assert "most recent call first" in capfd.readouterr().err


def test_a_worker_with_a_fault_is_ended_while_its_loop_turns(caplog, monkeypatch) -> None:
    monkeypatch.setattr("server.supervisor.watchdog._MERCY", 0.0)
    beating = """
ready(0.4)
page.fault = 'The engine stopped.'
while True:
    page.beats += 1
    time.sleep(0.01)
"""
    assert run(beating, READY_AND_STOP) == 0

    assert "was ended: The engine stopped." in caplog.text


def test_a_worker_that_only_starts_may_take_its_time() -> None:
    slow = "page.stall_after = 0.05; time.sleep(1.5); stop()"

    assert run(slow) == 0


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("ready(); stop(7)", 7),
        ("ready(); stop(0, signal.SIGINT)", 0),
        ("os.kill(os.getppid(), signal.SIGTERM); signal.pause()", 143),
    ],
)
def test_a_signal_goes_to_the_worker_and_its_status_is_the_status(script, status) -> None:
    assert run(script) == status


def test_a_second_signal_ends_a_worker_that_hears_none() -> None:
    deaf = """
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
ready()
os.kill(os.getppid(), signal.SIGTERM)
os.kill(os.getppid(), signal.SIGINT)
while True:
    page.beats += 1
    time.sleep(0.01)
"""
    # Both may be pending at once; whichever the loop takes last is the one told of.
    assert run(deaf) in (128 + signal.SIGINT, 128 + signal.SIGTERM)


def test_what_a_worker_has_started_ends_with_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"""
child = subprocess.Popen(["sleep", "600"])
open({str(note)!r}, "w").write(str(child.pid))
ready()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run(script, READY_AND_STOP) == 0

    end = time.monotonic() + 30
    while not gone(int(note.read_text())):
        assert time.monotonic() < end


def test_a_worker_does_not_outlive_its_supervisor(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"open({str(note)!r}, 'w').write(str(os.getpid())); ready(); time.sleep(600)"
    scripted = Scripted(script)
    supervisor = os.fork()
    if supervisor == 0:
        asyncio.run(scripted.run())
        os._exit(0)
    end = time.monotonic() + 30
    while not (note.exists() and note.read_text()):
        assert time.monotonic() < end

    os.kill(supervisor, signal.SIGKILL)

    os.waitpid(supervisor, 0)
    while not gone(int(note.read_text())):
        assert time.monotonic() < end
    scripted.supervisor._close()


class Slow(Backoff):
    def after(self, _ready_for: float | None) -> float:
        return 60.0


async def ask(port: int, path: str) -> tuple[bytes, dict]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return head, json.loads(body)


def test_while_it_waits_it_answers_itself() -> None:
    script = "ready(); page.keep_last_words('it hurts'); os.abort()"
    scripted = Scripted(script, READY_AND_STOP, backoff=Slow())

    async def all_of_it() -> tuple[int, list[tuple[bytes, dict]]]:
        running = asyncio.create_task(scripted.run())
        # The first of these connections is made while there is a worker that accepts nothing.
        answers = [await ask(scripted.port, path) for path in ("/v1/models", "/health/live")]
        os.kill(os.getpid(), signal.SIGTERM)
        return await running, answers

    status, ((head, refused), (live_head, live)) = asyncio.run(all_of_it())

    assert status == 0
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\nretry-after: ")
    assert 50 <= int(head.split(b"retry-after: ")[1].split(b"\r\n")[0]) <= 60
    assert set(refused["error"]) == {"message", "type", "param", "code"}
    assert refused["error"]["code"] == "engine_dead"
    assert "killed by SIGABRT (it hurts)" in refused["error"]["message"]
    assert live_head.startswith(b"HTTP/1.1 200 OK")
    assert live["status"] == "restarting"


async def told(port: int, request: str) -> tuple[str, dict[str, str], bytes]:
    """Status line, headers and body of the answer to a request that is a head alone."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.replace("\n", "\r\n").encode() + b"\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    status, *lines = head.decode().split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


def test_pages_that_may_use_the_server_may_read_that_it_restarts() -> None:
    script = "page.origins = 'https://a.test https://b.test'; ready(); os.abort()"
    scripted = Scripted(script, READY_AND_STOP, backoff=Slow())
    preflight = (
        "OPTIONS /v1/chat/completions HTTP/1.1\nhost: x\norigin: https://{}.test\n"
        "access-control-request-headers: authorization"
    )

    async def all_of_it() -> tuple[int, list[tuple[str, dict[str, str], bytes]]]:
        running = asyncio.create_task(scripted.run())
        requests = [
            "GET /v1/models HTTP/1.1\nhost: x\nOrigin: https://b.test",
            preflight.format("b"),
            preflight.format("c"),
            "HEAD /health HTTP/1.1\nhost: x",
        ]
        answers = [await told(scripted.port, request) for request in requests]
        os.kill(os.getpid(), signal.SIGTERM)
        return await running, answers

    status, (may, asks, may_not, head) = asyncio.run(all_of_it())

    assert status == 0
    assert may[0] == "HTTP/1.1 503 Service Unavailable"
    assert may[1]["access-control-allow-origin"] == "https://b.test"
    assert may[1]["access-control-expose-headers"] == "retry-after"
    assert json.loads(may[2])["error"]["code"] == "engine_dead"
    assert asks[0] == "HTTP/1.1 204 No Content"
    assert asks[1]["access-control-allow-headers"] == "authorization"
    assert may_not[0] == "HTTP/1.1 503 Service Unavailable"
    assert not any(name.startswith("access-control") for name in may_not[1])
    assert int(head[1]["content-length"]) > 0
    assert head[2] == b""


def test_who_finds_no_room_is_left_to_the_next_worker(monkeypatch) -> None:
    """Whoever took all that come would be without descriptors for the next worker's start."""
    monkeypatch.setattr("server.supervisor.responder._CONNECTIONS", 2)

    async def all_of_it() -> bytes:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        port = listener.getsockname()[1]
        with contextlib.ExitStack() as clients:
            clients.enter_context(listener)
            async with Responder(listener, "It hurts.", lambda: 3.0) as responder:
                for _ in range(2):
                    clients.enter_context(socket.create_connection(("127.0.0.1", port)))
                await comes(lambda: len(responder.answering) == 2)
                last = clients.enter_context(socket.create_connection(("127.0.0.1", port)))
                last.sendall(b"I wait")
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            taken, _ = listener.accept()
            clients.enter_context(taken)
            taken.setblocking(True)
            for task in responder.answering:
                task.cancel()
            return taken.recv(100)

    assert asyncio.run(all_of_it()) == b"I wait"


def test_room_that_is_there_again_is_used(monkeypatch) -> None:
    monkeypatch.setattr("server.supervisor.responder._CONNECTIONS", 1)

    async def all_of_it() -> list[bytes]:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        port = listener.getsockname()[1]
        with listener:
            async with Responder(listener, "It hurts.", lambda: 3.0):
                answers = await asyncio.gather(*(ask(port, "/v1/models") for _ in range(5)))
        return [head.split(b"\r\n")[0] for head, _ in answers]

    assert asyncio.run(all_of_it()) == [b"HTTP/1.1 503 Service Unavailable"] * 5


def test_at_the_end_the_socket_is_the_workers_alone() -> None:
    """Who connects after the worker has closed it is refused, not kept waiting."""
    script = """
done = []
signal.signal(signal.SIGTERM, lambda *_: done.append(1))
ready()
os.kill(os.getppid(), signal.SIGTERM)
while not done:
    time.sleep(0.01)
import socket
port = me.listener.getsockname()[1]
me.listener.close()
try:
    socket.create_connection(("127.0.0.1", port)).close()
except ConnectionRefusedError:
    os._exit(11)
os._exit(12)
"""
    assert run(script) == 11


def test_a_worker_that_cannot_be_started_at_first_is_the_end(monkeypatch) -> None:
    scripted = Scripted("")
    monkeypatch.setattr(scripted.supervisor, "_command", lambda _: ["/nonexistent/python"])

    assert asyncio.run(scripted.run()) == 1


def test_the_page_tells_systemd(tmp_path: Path) -> None:
    """The test plays the worker's part on the page; the process only has to be there."""
    idle = """
assert "NOTIFY_SOCKET" not in os.environ
signal.signal(signal.SIGHUP, lambda *_: None)
page.progress, page.stall_after, page.state = 0.5, 600.0, WorkerState.LOADING
while True:
    signal.pause()
"""
    address = tmp_path / "notify"

    async def all_of_it(systemd: socket.socket) -> tuple[int, list[str]]:
        loop, beaten = asyncio.get_running_loop(), False
        scripted = Scripted(idle, NOTIFY_SOCKET=str(address), WATCHDOG_USEC="200000")
        page = scripted.supervisor._page

        async def hear() -> str:
            nonlocal beaten
            async with asyncio.timeout(30):
                while (told := (await loop.sock_recv(systemd, 4096)).decode()) == "WATCHDOG=1":
                    beaten = True
            return told

        running = asyncio.create_task(scripted.run())
        heard = [await hear()]
        page.ready_at, page.state = time.monotonic(), WorkerState.READY
        heard.append(await hear())
        os.kill(os.getpid(), signal.SIGHUP)
        heard.append(await hear())
        page.reloaded = "2 settings changed"
        page.reloads += 1
        heard.append(await hear())
        os.kill(os.getpid(), signal.SIGTERM)
        heard.append(await hear())
        assert beaten
        return await running, heard

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(address))
        systemd.setblocking(False)
        status, (loading, ready, reloading, reloaded, stopping) = asyncio.run(all_of_it(systemd))

    assert status == 143
    assert loading == "STATUS=Loading, 50% done"
    assert ready == "READY=1\nSTATUS=Serving"
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert reloaded == "READY=1\nSTATUS=2 settings changed"
    assert stopping.startswith("STOPPING=1")


class Systemd:
    """Hears what a supervisor tells, its heartbeat left out."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)

    async def until(self, begin: str) -> list[str]:
        """Return all that was told up to the first that begins so, that one included."""
        heard = [""]
        async with asyncio.timeout(30):
            while not heard[-1].startswith(begin):
                heard.append(
                    (await asyncio.get_running_loop().sock_recv(self._socket, 4096)).decode()
                )
        return heard[1:]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path):
    made = Systemd(tmp_path)
    yield made
    made.close()


async def comes(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 - shared memory of another process has no event
            await asyncio.sleep(0.01)


def test_a_reload_during_the_first_start_is_kept_and_is_no_readiness(systemd) -> None:
    """A worker that downloads has read its file long ago."""
    script = """
def again(*_):
    page.reloaded = 'read again'
    page.reloads += 1
signal.signal(signal.SIGHUP, again)
page.progress = 0.5
while True:
    signal.pause()
"""

    async def all_of_it() -> list[str]:
        scripted = Scripted(script, NOTIFY_SOCKET=systemd.address)
        page = scripted.supervisor._page
        running = asyncio.create_task(scripted.run())
        await comes(lambda: page.progress == 0.5)
        scripted.supervisor._hang_up()
        page.stall_after, page.state = 600.0, WorkerState.LOADING
        heard = await systemd.until("STATUS=Loading")
        page.ready_at, page.state = time.monotonic(), WorkerState.READY
        heard += await systemd.until("READY")
        os.kill(os.getpid(), signal.SIGTERM)
        await running
        return heard

    assert asyncio.run(all_of_it()) == [
        "STATUS=read again",
        "STATUS=Loading, 50% done",
        "READY=1\nSTATUS=Serving",
    ]


def test_a_worker_that_dies_of_a_reload_does_not_leave_it_unfinished(systemd) -> None:
    die = "signal.signal(signal.SIGHUP, lambda *_: os._exit(1)); ready(600.0)\nwhile True: signal.pause()"
    wait = "ready(600.0)\nwhile True: signal.pause()"

    async def all_of_it() -> list[str]:
        scripted = Scripted(die, wait, NOTIFY_SOCKET=systemd.address)
        running = asyncio.create_task(scripted.run())
        await systemd.until("READY=1")
        os.kill(os.getpid(), signal.SIGHUP)
        heard = await systemd.until("READY=1")
        os.kill(os.getpid(), signal.SIGTERM)
        await running
        return heard

    reloading, restarting, ready = asyncio.run(all_of_it())
    assert reloading.startswith("RELOADING=1\n")
    assert restarting.startswith(
        "STATUS=Restarting at once: the server process ended with status 1"
    )
    assert ready == "READY=1\nSTATUS=Serving"
