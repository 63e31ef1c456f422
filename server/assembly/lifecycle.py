"""Start-up and shutdown order: listen, answer, load, announce; drain, end streams, stop, exit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import uvicorn
import uvloop

from server.api.early import EarlyAnswers
from server.assembly.connections import ConnectionLimits, bounded
from server.assembly.gpu_guard import watch_cards
from server.assembly.keys import check_keys
from server.assembly.live import LiveSettings
from server.assembly.open_files import make_room
from server.assembly.parts import Parts, build
from server.assembly.pulse import Pulse
from server.assembly.reloading import Reloader
from server.assembly.remotes import all_connections
from server.assembly.wanted import Fetch
from server.core.clock import SystemClock
from server.core.errors import OnegpuError, Unavailable
from server.gateway.host import Host, HostedEngine
from server.ops.logging import configure_logging
from server.settings import Settings
from server.supervisor.inherited import Inherited
from server.supervisor.listening import listen, url_of
from server.supervisor.terminal import Terminal

log = logging.getLogger(__name__)

_SWITCH_INTERVAL = 0.0005
"""Seconds the event loop may hold the GIL while the engine thread wants it back."""
_STOP_SECONDS = 30
"""How long the step in progress may take at shutdown; a full ubatch on a slow CPU takes seconds."""
_FLUSH_SECONDS = 5
"""How long the last chunks of streams that were ended may take to be sent."""


def serve(
    settings: Settings,
    fetch: Fetch = Path,
    inherited: Inherited | None = None,
    read: Callable[[], Settings] | None = None,
) -> int:
    """Serve until a signal. Returns the exit status: 0 after a shutdown, 1 if the model failed.

    `fetch` finds the files of models. `inherited`: what a supervisor gave this process, if one runs
    it. `read` reads the settings again when SIGHUP comes. Raises `ConfigError` before anything is
    started.
    """
    configure_logging(
        settings.logging.level, settings.logging.format, access_log=settings.server.access_log
    )
    if inherited is None:
        listener = listen(settings.server.host, settings.server.port)
    else:
        listener = inherited.listener
    page = None if inherited is None else inherited.page
    with contextlib.closing(listener):
        check_keys(settings, listener.getsockname()[0])
        make_room(all_connections(settings))
        parts = build(settings, SystemClock(), fetch, page)
        sys.setswitchinterval(_SWITCH_INTERVAL)
        return uvloop.run(Lifecycle(settings, parts, listener, inherited, read).run())


class _Server(uvicorn.Server):
    """Leaves the signals to `Lifecycle`: uvicorn would raise them again after its shutdown."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


class Lifecycle:
    """One run of the server."""

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        listener: socket.socket,
        inherited: Inherited | None = None,
        read: Callable[[], Settings] | None = None,
    ) -> None:
        """Nothing starts before `run`."""
        self._parts = parts
        self._listener = listener
        self._pulse: Pulse | None = None
        self._again = False
        """Whether another process has said already what there is to say to a person."""
        if inherited is not None:
            self._again = any(inherited.page.restarts.values())
            self._pulse = Pulse(inherited.page, parts.health, parts.preload[0], inherited.keep)
        self._terminal = Terminal()
        self._signalled = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        protocol = bounded(
            ConnectionLimits(settings.server.max_connections, settings.server.header_timeout),
            EarlyAnswers(parts.reporter),
        )
        config = uvicorn.Config(
            parts.app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # Written out: without it uvicorn reads FORWARDED_ALLOW_IPS by itself.
            forwarded_allow_ips=["127.0.0.1", "::1"],
            timeout_keep_alive=math.ceil(settings.server.idle_timeout),
            timeout_graceful_shutdown=_FLUSH_SECONDS,
        )
        self._http = _Server(config)
        address = listener.getsockname()[0]
        live = LiveSettings(parts, config, protocol, address, SystemClock()).all()
        self._reloader = Reloader(settings, read or (lambda: settings), live)

    async def run(self) -> int:
        """Serve until a signal, or until the model does not load."""
        self._handle_signals()
        if self._pulse is not None:
            self._pulse.begin()
        http = asyncio.create_task(self._http.serve(sockets=[self._listener]))
        loaded = asyncio.create_task(self._load())
        watch = asyncio.create_task(self._parts.hosts.watch())
        remotes = asyncio.create_task(self._parts.remotes.run())
        settings = self._reloader.settings
        guard = asyncio.create_task(watch_cards(self._parts.guard, settings, SystemClock()))
        pulse = asyncio.create_task(self._pulse.run()) if self._pulse else None
        signalled = asyncio.create_task(self._signalled.wait())
        await asyncio.wait((loaded, signalled), return_when=asyncio.FIRST_COMPLETED)
        status = loaded.result() if loaded.done() else 0
        if status == 0:
            await asyncio.wait((http, signalled), return_when=asyncio.FIRST_COMPLETED)
            await self._drain()
        for task in (loaded, signalled, watch, guard, remotes):
            task.cancel()
        await self._parts.remotes.close()
        stopped = await self._stop_engines()
        self._http.should_exit = True
        await http
        if pulse is not None:
            pulse.cancel()
        self._parts.service.shutdown()
        if not stopped:
            logging.shutdown()
            # A thread that hangs in native code would keep the interpreter from ending.
            os._exit(1)
        return status

    async def _stop_engines(self) -> bool:
        """End all engines; if a decode call hangs, end streams without it. True if they ended."""
        hosts = self._parts.hosts
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await hosts.stop()
        except TimeoutError:
            log.error("The engine does not stop; ending without it")  # noqa: TRY400 - there is no traceback worth showing
            hosts.abandon()
            return False
        return True

    async def _load(self) -> int:
        """Announce the model, or say why there is none. Returns the exit status so far."""
        parts, url = self._parts, url_of(self._listener)
        if not self._again:
            for note in parts.notes:
                print(note, flush=True)  # noqa: T201 - the command's own answer
        log.info("Listening on %s; loading %s", url, self._reloader.settings.model.path)
        first, *others = parts.preload
        standby = set(parts.router.stand_ins(parts.router.default))
        self._begin([host for host in others if host in standby])  # they answer while it loads
        try:
            await parts.hosts.load(first)
        except OnegpuError as error:
            message = (first.error or error).message
            print(f"onegpu: {message}", file=sys.stderr)  # noqa: T201 - the command's own answer
            return 1
        if self._again:
            log.info("%s is ready again on %s", first.spec.name, url)
        else:
            print(_announcement(url, parts), flush=True)  # noqa: T201 - the command's own answer
        if self._pulse is not None:
            self._pulse.ready(self._reloader.settings)
        self._begin(others)
        return 0

    def _begin(self, hosts: Iterable[Host]) -> None:
        """Begin to load; one that cannot be is told where it is asked for, as is a signal before."""
        for host in hosts:
            with contextlib.suppress(OnegpuError):
                self._parts.hosts.begin_load(host)

    async def _drain(self) -> None:
        """Admit nothing new; let what runs finish, at most for the grace."""
        admission, grace = self._parts.admission, self._reloader.settings.server.shutdown_grace
        admission.drain()
        self._parts.answers.drain()
        log.info("Shutting down: %d requests have %.0f s to finish", admission.outstanding, grace)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await admission.drained()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)

    def _on_signal(self, number: int) -> None:
        if self._signalled.is_set():
            if self._pulse is not None:
                return  # told twice, by the supervisor and to the whole group; the former ends it
            log.warning("Second signal: ending at once")
            logging.shutdown()
            # The engine thread may be inside a decode call, which nothing can interrupt.
            os._exit(128 + number)
        self._signalled.set()

    def _on_hangup(self) -> None:
        """Read the configuration again, unless it is the terminal that has gone."""
        if self._terminal.gone():
            self._signalled.set()
            return
        task = asyncio.get_running_loop().create_task(self._reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload(self) -> None:
        told = await self._reloader.reload()
        self._parts.hosts.warm()
        if self._pulse is not None:
            self._pulse.reloaded(self._reloader.settings, told)


def _announcement(url: str, parts: Parts) -> str:
    """Return what a person sees once the model is ready: what is served, where, and how to ask."""
    served = parts.router.default
    spec, name = served.host.spec, served.agent.name
    facts = _facts(served.host.engine)
    body = (
        f'{{"model": "{name}", "stream": true, '
        '"messages": [{"role": "user", "content": "What is a slot?"}]}'
    )
    key = "-H 'Authorization: Bearer YOUR_KEY' " if parts.authenticator.required() else ""
    return (
        f"\n{name}{facts} is ready on {url}\n{_others(parts)}"
        f"{spec.slots} slots of up to {spec.n_ctx} tokens over {spec.kv_cells} KV cells. Try:\n\n"
        f"  curl -N {url}/v1/chat/completions {key}-H 'Content-Type: application/json' \\\n"
        f"    -d '{body}'\n"
    )


def _facts(engine: HostedEngine | None) -> str:
    """Return what is known of a model; nothing where a keep_alive of 0 has ended it again already."""
    try:
        info = None if engine is None else engine.model[0]
    except Unavailable:
        info = None
    return "" if info is None else f" ({info.description}, {info.size_bytes / 1e6:,.1f} MB)"


def _others(parts: Parts) -> str:
    names = parts.router.names[1:]
    if not names:
        return ""
    hosts = {name: parts.router.pick(name).host for name in names}
    shared = [name for name, host in hosts.items() if host is parts.preload[0]]
    loaded_next = [name for name, host in hosts.items() if host in parts.preload[1:]]
    loaded_later = [name for name, host in hosts.items() if host not in parts.preload]
    told = f"Also served: {', '.join(names)}."
    if shared:
        told += f" The same weights: {', '.join(shared)}."
    if loaded_next:
        told += f" Loading now: {', '.join(loaded_next)}."
    if loaded_later:
        told += f" Loaded when asked for: {', '.join(loaded_later)}."
    return told + "\n"
