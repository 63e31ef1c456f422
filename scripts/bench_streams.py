"""What streams and idle connections cost the serving process: CPU per token and thread, memory per connection.

An engine that computes nothing (bench/paced.py), so that what is measured is this server.
`streams`: N streams at a time; CPU of the event loop's and of the engine's thread per token, from
/proc, and wake-ups of the event loop per step. Meanwhile py-spy may sample the process.
`idle`: resident memory per keep-alive connection that has had an answer, and per stream in the line.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from urllib.request import urlopen

import uvloop

from bench.load_client import Asked
from bench_load import TICKS, Served

_MODELS = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
_FIRST = 100
"""Connections that pay for what all share."""


def thread_seconds(pid: int) -> dict[int, float]:
    """CPU seconds of each thread so far."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        found[int(task.name)] = (int(fields[11]) + int(fields[12])) / TICKS
    return found


def engine_events(port: int) -> dict[str, float]:
    """Return `onegpu_engine_events_total`, event by event."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    named = [line for line in lines if line.startswith('onegpu_engine_events_total{event="')]
    return {line.split('"')[1]: float(line.rsplit(" ", 1)[1]) for line in named}


class Client:
    """Connections that are held, and what came on them."""

    def __init__(self, port: int, tokens: int) -> None:
        """`tokens`: of each stream."""
        self._asked = Asked(port, "bench", tokens)
        self.chunks = 0
        self._held: list[asyncio.StreamWriter] = []
        self._readers: list[asyncio.Task[None]] = []

    async def stream(self, number: int, until: bytes) -> None:
        """Ask for a stream and wait until something has come of it; what comes later is counted."""
        body = self._asked.bytes(number)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        reader = await self._send(head.encode() + body)
        await reader.readuntil(until)
        self._readers.append(asyncio.create_task(self._read(reader)))

    async def keep_alive(self, _number: int) -> None:
        """Ask for the models, read the answer, and stay."""
        reader = await self._send(_MODELS)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))

    async def close(self) -> None:
        """Let go of all of them; the server, which would let them finish, sees it."""
        for reading in self._readers:
            reading.cancel()
        for writer in self._held:
            writer.close()
        await asyncio.sleep(0.5)

    async def _send(self, data: bytes) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._asked.port)
        self._held.append(writer)
        writer.write(data)
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(status.decode() + (await reader.read(1000)).decode())
        return reader

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(1 << 16):
            self.chunks += data.count(b"data: ")


async def streams(options: argparse.Namespace) -> None:
    """Measure each number of streams."""
    print(
        "streams   tokens/s   event loop   engine thread (µs of CPU per token)   wake-ups per step"
    )
    for count in options.counts:
        settings = {"ONEGPU_ENGINE__SLOTS": count, "ONEGPU_ENGINE__N_CTX": options.n_ctx}
        with Served(options, **settings) as server:
            client = Client(server.port, options.n_ctx - 1000)
            await asyncio.gather(*(client.stream(n, b"content") for n in range(count)))
            await asyncio.sleep(1)
            spying = await _spy(options, server.pid) if count == options.counts[-1] else None
            before, events, chunks = (
                thread_seconds(server.pid),
                engine_events(server.port),
                client.chunks,
            )
            begin = time.perf_counter()
            await asyncio.sleep(options.seconds)
            took, tokens = time.perf_counter() - begin, client.chunks - chunks
            after, now = thread_seconds(server.pid), engine_events(server.port)
            if spying is not None:
                await spying.wait()
            await client.close()
            used = {thread: after[thread] - before.get(thread, 0.0) for thread in after}
            loop = used.pop(server.pid)
            wakeups = (now["wakeups"] - events["wakeups"]) / (now["steps"] - events["steps"])
            print(
                f"{count:>7}   {tokens / took:>8.0f}   {loop / tokens * 1e6:>10.1f}"
                f"   {max(used.values()) / tokens * 1e6:>13.1f}   {wakeups:>40.2f}",
                flush=True,
            )


async def _spy(options: argparse.Namespace, pid: int) -> asyncio.subprocess.Process | None:
    if not options.spy:
        return None
    command = [options.py_spy, "record", "-p", str(pid), "-d", str(int(options.seconds)), "-t"]
    return await asyncio.create_subprocess_exec(
        *command, "-r", "500", "-f", "raw", "-o", options.spy
    )


async def idle(options: argparse.Namespace) -> None:
    """Measure memory before and after so many connections."""
    print("connections   kB each, keep-alive   kB each, stream in the line")
    settings = {
        "ONEGPU_SERVER__MAX_CONNECTIONS": max(options.counts) + 2 * _FIRST,
        "ONEGPU_GATEWAY__MAX_QUEUE": max(options.counts) + 2 * _FIRST,
        "ONEGPU_GATEWAY__STREAM_HOLD": "1ms",
        "ONEGPU_ENGINE__SLOTS": 1,
        "PACED_STEP_MS": 1000,
    }
    for count in options.counts:
        with Served(options, **settings) as server:
            client = Client(server.port, 500)
            kept = await _each(server, client.keep_alive, count)
            await client.close()
        with Served(options, **settings) as server:
            client = Client(server.port, 500)
            await client.stream(0, b"content")
            waiting = await _each(server, _queued(client), count)
            await client.close()
        print(f"{count:>11}   {kept:>19.1f}   {waiting:>27.1f}", flush=True)


async def _each(
    server: Served, make: Callable[[int], Coroutine[None, None, None]], count: int
) -> float:
    """Return kB per connection, beyond the first ones."""
    for number in range(_FIRST):
        await make(number)
    before = server.rss
    for number in range(_FIRST, _FIRST + count):
        await make(number)
    await asyncio.sleep(1)
    return (server.rss - before) * 1024 / count


def _queued(client: Client) -> Callable[[int], Coroutine[None, None, None]]:
    return lambda number: client.stream(number + 1, b": queued")


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", choices=("streams", "idle"))
    parser.add_argument("--counts", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring [5]")
    parser.add_argument("--step-ms", type=float, default=20.0, help="of a decode call [20]")
    parser.add_argument("--n-ctx", type=int, default=4096)
    parser.add_argument("--spy", metavar="FILE", help="sample the last count with py-spy, raw")
    parser.add_argument("--py-spy", metavar="COMMAND", default="py-spy")
    options = parser.parse_args()
    options.counts = options.counts or ([1, 4, 16, 64] if options.run == "streams" else [500, 2000])
    options.model, options.slots = None, 1
    uvloop.run(streams(options) if options.run == "streams" else idle(options))


if __name__ == "__main__":
    main()
