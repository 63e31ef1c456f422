"""A lean HTTP client as a worker: N streaming chats at once, one thread, next to no parsing.

It counts the chunks that carry content and notes when they came; a client that parsed JSON would
take tokens away from the server on a small machine.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.common import Job, prompt, serve_lines

MARK = b'"content":'
TIMEOUT = 600.0


class Stream:
    """One request and the arrival times of its content chunks."""

    def __init__(self, port: int, body: bytes) -> None:
        self.times: list[float] = []
        self.tail = b""
        self.head = b""
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )

    def take(self) -> bool:
        """Read what is there; False at the end."""
        data = self.socket.recv(65536)
        now = time.perf_counter()
        if not data:
            return False
        if len(self.head) < 2048:
            self.head += data[:2048]
        # A mark may be cut in two: keep just too little of it to be counted twice.
        text = self.tail + data
        self.times += [now] * text.count(MARK)
        self.tail = text[-(len(MARK) - 1) :]
        return True


def body_of(job: Job, sequence: int) -> bytes:
    """Return the JSON of one chat."""
    asked: dict[str, Any] = {
        "model": "bench",
        "messages": [{"role": "user", "content": prompt(sequence, job.words)}],
        "max_tokens": job.tokens,
        "ignore_eos": True,
        "stream": True,
        "seed": sequence,
        "temperature": 0.0 if job.greedy else job.temperature,
    }
    if not job.greedy:
        asked |= {"top_k": job.top_k, "top_p": job.top_p}
    return json.dumps(asked).encode()


def run(port: int, slots: int, job: Job, model: str) -> float:
    """Stream `slots` chats at once; tokens per second of the steady phase."""
    bodies = [body_of(job, i).replace(b'"bench"', json.dumps(model).encode()) for i in range(slots)]
    streams = [Stream(port, body) for body in bodies]
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream.socket, selectors.EVENT_READ, stream)
        while selector.get_map():
            ready = selector.select(TIMEOUT)
            if not ready:
                raise TimeoutError("the server fell silent")
            for key, _ in ready:
                if not key.data.take():
                    selector.unregister(key.fileobj)
                    key.data.socket.close()
    for stream in streams:
        if len(stream.times) < job.tokens // 2:
            raise RuntimeError(f"a stream broke off: {stream.head.decode(errors='replace')}")
    return steady_rate(streams, job.tokens)


def steady_rate(streams: list[Stream], tokens: int) -> float:
    """Tokens per second while all streams ran.

    A chunk may carry several tokens and a character several chunks, so a stream's chunks are taken
    for equal shares of its `tokens`. The first mark of a stream is the role's.
    """
    times = [stream.times[1:] for stream in streams]
    begin, end = max(t[0] for t in times), min(t[-1] for t in times)
    seen = sum(sum(begin < at <= end for at in t) * tokens / len(t) for t in times)
    return seen / (end - begin)


def model_name(port: int) -> str:
    """Ask the server what its model is called."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    name: str = json.loads(answer.partition(b"\r\n\r\n")[2])["data"][0]["id"]
    return name


def main() -> None:
    """Answer jobs with rates."""

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        port, slots = asked.pop("port"), asked.pop("slots")
        return {"rate": run(port, slots, Job(**asked), model_name(port))}

    serve_lines(answer)


if __name__ == "__main__":
    main()
