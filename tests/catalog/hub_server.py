"""A model hub on loopback, for the real huggingface_hub client. It speaks what the hub speaks where we rely on it.

    with HubServer() as hub:
        hub.add("owner/repo", {"m-Q4_K_M.gguf": data, "README.md": b"..."})
        ... endpoint=hub.endpoint ...
        hub.requests          # [Request(method, path, range, token, user_agent)], in order
        hub.bytes_of("m-Q4_K_M.gguf")   # body bytes sent for a file, by all GETs together

Files ending in .gguf or .safetensors are LFS files: `/resolve/` answers 302 to a CDN on another port (another origin,
so a token must not follow), with X-Linked-Size, X-Linked-ETag (the SHA-256) and X-Repo-Commit. The CDN serves ranges.

Faults, all keyed by file name and used up one by one:
    hub.cut_after[name] = [n, ...]     the connection is cut after n body bytes
    hub.failures[name] = [(status, headers), ...]   answers of the CDN before it serves; "api" for the API
    hub.hold[name] = Hold(n)           after n body bytes: sets `reached`, then waits for `release`
    hub.wrong[name] = data             what the CDN serves instead (same SHA-256 claimed)
    hub.headers[name] = {...}          headers that the CDN sends with the file
    hub.unsized.add(name)              the CDN does not say how long it is
    hub.ignore_ranges = True           the CDN answers 200 with the whole file
    hub.shift[name] = n                a range is answered from n bytes further on, and says so
    hub.entries[name] = {...}          what the API says of a file instead, key by key
    hub.moved["owner/repo"] = address  the API and /resolve/ answer 307 to that address
    hub.private["owner/repo"] = "token"   401 RepoNotFound without it
    hub.gated["owner/repo"] = "token"     the API answers all, /resolve/ 401 GatedRepo without it
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

_LFS = (".gguf", ".safetensors")
_CHUNK = 64 * 1024


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None
    user_agent: str


@dataclass
class Hold:
    """Stops a body after `after` bytes until the test lets it go on."""

    after: int
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


@dataclass
class _Repo:
    files: dict[str, bytes]
    commit: str
    license: str
    revisions: set[str]


class HubServer:
    """The hub and its CDN, each on a free port of loopback."""

    def __init__(self) -> None:
        self.repos: dict[str, _Repo] = {}
        self.requests: list[Request] = []
        self.sent: dict[str, int] = defaultdict(int)
        self.cut_after: dict[str, list[int]] = defaultdict(list)
        self.failures: dict[str, list[tuple[int, dict[str, str]]]] = defaultdict(list)
        self.hold: dict[str, Hold] = {}
        self.wrong: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.unsized: set[str] = set()
        self.ignore_ranges = False
        self.shift: dict[str, int] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        self.moved: dict[str, str] = {}
        self.private: dict[str, str] = {}
        self.gated: dict[str, str] = {}
        self.lock = threading.Lock()
        self._hub = _serve(self, _HubHandler)
        self._cdn = _serve(self, _CdnHandler)
        self.endpoint = f"http://127.0.0.1:{self._hub.server_port}"
        self.cdn = f"http://127.0.0.1:{self._cdn.server_port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for hold in self.hold.values():
            hold.release.set()
        for server in (self._hub, self._cdn):
            server.shutdown()
            server.server_close()

    def add(self, repo: str, files: dict[str, bytes], *, license_name: str = "apache-2.0") -> None:
        names = "".join(f"{n}{hashlib.sha256(d).hexdigest()}" for n, d in sorted(files.items()))
        commit = hashlib.sha1(names.encode()).hexdigest()
        self.repos[repo] = _Repo(dict(files), commit, license_name, {"main", commit})

    def sha256(self, repo: str, name: str) -> str:
        return hashlib.sha256(self.repos[repo].files[name]).hexdigest()

    def bytes_of(self, name: str) -> int:
        return self.sent[name]

    def gets(self, name: str) -> list[Request]:
        """Requests for a file's body, redirects not counted."""
        return [r for r in self.requests if r.method == "GET" and r.path == f"/cdn/{name}"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that are killed, which is what tests do to them."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _serve(hub: HubServer, handler: type[_Handler]) -> ThreadingHTTPServer:
    server = _Server(("127.0.0.1", 0), type("Bound", (handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler, ABC):
    hub: ClassVar[HubServer]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def note(self, path: str) -> None:
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
        agent = self.headers.get("user-agent", "")
        with self.hub.lock:
            self.hub.requests.append(
                Request(self.command, path, self.headers.get("range"), token, agent)
            )

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fault(self, name: str) -> bool:
        """Answer with the next failure planned for `name`; False when none is left."""
        with self.hub.lock:
            planned = self.hub.failures[name].pop(0) if self.hub.failures[name] else None
        if planned is None:
            return False
        self.answer(planned[0], planned[1], b"planned failure")
        return True

    def do_HEAD(self) -> None:
        self.do_GET()

    @abstractmethod
    def do_GET(self) -> None:
        """Answer a request for a path of this server."""


class _HubHandler(_Handler):
    """The API and `/resolve/`."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.note(path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            if not self.fault("api"):
                self._api(match[1], match[2], match[3] or "main", parse_qs(url.query))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        else:
            self._missing("EntryNotFound")

    def _missing(self, code: str, status: int = 404) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code}
        self.answer(status, headers, json.dumps({"error": code}).encode())

    def _admitted(self, repo: str, revision: str, *, body: bool) -> _Repo | None:
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        if repo in self.hub.moved:
            self.answer(307, {"Location": self.hub.moved[repo]})
            return None
        found = self.hub.repos.get(repo)
        if found is None or self.hub.private.get(repo, token) != token:
            self._missing("RepoNotFound", 401)
            return None
        if body and self.hub.gated.get(repo, token) != token:
            self._missing("GatedRepo", 401)
            return None
        if revision not in found.revisions:
            self._missing("RevisionNotFound")
            return None
        return found

    def _api(self, repo: str, part: str | None, revision: str, query: dict[str, list[str]]) -> None:
        found = self._admitted(repo, revision, body=False)
        if found is None:
            return
        document: Any
        if part == "tree":
            document = [_tree_entry(name, data) for name, data in found.files.items()]
        else:
            document = {
                "id": repo,
                "sha": found.commit,
                "private": repo in self.hub.private,
                "gated": "auto" if repo in self.hub.gated else False,
                "tags": ["gguf", f"license:{found.license}"],
                "cardData": {"license": found.license},
                "siblings": [
                    {**_sibling(n, d, "blobs" in query), **self.hub.entries.get(n, {})}
                    for n, d in found.files.items()
                ],
            }
        headers = {"Content-Type": "application/json"}
        if not self.headers.get("authorization"):
            headers["X-HF-Warning"] = "unauthenticated; You are sending unauthenticated requests."
        self.answer(200, headers, json.dumps(document).encode())

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        found = self._admitted(repo, revision, body=True)
        if found is None:
            return
        if name not in found.files:
            self._missing("EntryNotFound")
            return
        data = found.files[name]
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": found.commit, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        if not name.endswith(_LFS):
            self.answer(200, headers, data)
            return
        headers["X-Linked-Size"] = str(len(data))
        headers["X-Linked-ETag"] = f'"{digest}"'
        headers["Location"] = f"{self.hub.cdn}/cdn/{quote(name)}?repo={repo}"
        self.answer(302, headers)


class _CdnHandler(_Handler):
    """What `/resolve/` redirects to; serves ranges, and faults."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        name = unquote(url.path).removeprefix("/cdn/")
        self.note(f"/cdn/{name}")
        if self.fault(name):
            return
        repo = parse_qs(url.query)["repo"][0]
        data = self.hub.wrong.get(name, self.hub.repos[repo].files[name])
        start, end, status = self._range(len(data))
        start += self.hub.shift.get(name, 0) if status == 206 else 0
        if start >= len(data):
            self.answer(416, {"Content-Range": f"bytes */{len(data)}"})
            return
        self.send_response(status)
        for key, value in self.hub.headers.get(name, {}).items():
            self.send_header(key, value)
        if name in self.hub.unsized:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(end - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self._body(name, data[start:end])

    def _range(self, size: int) -> tuple[int, int, int]:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")
        if match is None or self.hub.ignore_ranges:
            return 0, size, 200
        return int(match[1]), min(int(match[2]) + 1 if match[2] else size, size), 206

    def _body(self, name: str, data: bytes) -> None:
        with self.hub.lock:
            cut = self.hub.cut_after[name].pop(0) if self.hub.cut_after[name] else None
            hold = self.hub.hold.pop(name, None)
        if hold is not None:
            # What the client has not read is then at most its own receive buffer.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        stops = [n for n in (cut, hold and hold.after) if n is not None]
        count = 0
        for piece in _pieces(data, stops):
            # Before they go: the client may have ended before this thread runs again.
            with self.hub.lock:
                self.hub.sent[name] += len(piece)
            self.wfile.write(piece)
            count += len(piece)
            if hold is not None and count == hold.after:
                hold.reached.set()
                hold.release.wait(60)
            if count == cut:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return


def _pieces(data: bytes, stops: list[int]) -> Iterator[bytes]:
    """Cut into pieces of at most `_CHUNK`, one ending at each stop."""
    ends = sorted({*range(_CHUNK, len(data), _CHUNK), *(s for s in stops if s < len(data))})
    start = 0
    for end in [*ends, len(data)]:
        yield data[start:end]
        start = end


def _sibling(name: str, data: bytes, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": name}
    entry = {"rfilename": name, "size": len(data), "blobId": _blob_id(data)}
    if name.endswith(_LFS):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
    return entry


def _tree_entry(name: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "oid": _blob_id(data), "size": len(data), "path": name}
    if name.endswith(_LFS):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
    return entry


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
