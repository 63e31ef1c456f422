"""The two processes of `onegpu serve`: a supervisor, and the same command once more as its worker."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from server.core.errors import ConfigError

if TYPE_CHECKING:
    from server.settings import Settings
    from server.supervisor.inherited import Descriptors, Inherited


def supervise(settings: Settings) -> int:
    """Run workers until a signal. Returns the exit status.

    Raises `ConfigError` where nothing can listen, `OnegpuError` when worker after worker is killed.
    """
    from server.ops.logging import configure_logging
    from server.settings.environment import computing_environment, read_environment
    from server.supervisor.listening import listen
    from server.supervisor.supervisor import Supervisor

    configure_logging(settings.logging.level, settings.logging.format)
    listener = listen(settings.server.host, settings.server.port)
    environ = computing_environment(read_environment())
    return asyncio.run(Supervisor(_command, listener, environ).run())


def inherit(descriptors: str | None) -> Inherited | None:
    """Take over what the supervisor gave this process; None where there is no supervisor."""
    if descriptors is None:
        return None
    from server.supervisor.inherited import Descriptors, Inherited

    try:
        return Inherited(Descriptors.parse(descriptors))
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(
            "--worker is how `onegpu serve` starts itself once more; leave it out."
        ) from error


def settings_of(read: Callable[[], Settings], inherited: Inherited | None) -> Settings:
    """Read the settings.

    Where a worker has served already, and they are wrong by now or did not make a worker serve that
    was started since, they are the ones it served with.
    """
    from server.settings.snapshot import from_bytes

    if inherited is None or not (kept := inherited.configuration):
        return read()
    try:
        settings = read()
        if not inherited.page.failed:
            return settings
        told = "The last start did not succeed."
    except ConfigError as error:
        told = error.message
    print(f"{told}\nThe last configuration that one could serve with is used.", file=sys.stderr)
    return from_bytes(kept)


def _command(numbers: Descriptors) -> list[str]:
    """Return this very command line with the flag that makes a worker of it."""
    command = [sys.executable, *sys.orig_argv[1:]]
    at = command.index("serve") + 1
    return [*command[:at], "--worker", str(numbers), *command[at:]]
