"""API keys at start: a sound store, and no server for others without keys."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from server.api.access import HEALTH, METRICS, AccessRules
from server.core.errors import ConfigError
from server.gateway.failures import is_loopback
from server.settings import ServerSettings, Settings
from server.store.connection import FILE, open_database
from server.store.key_view import KeyView

log = logging.getLogger(__name__)


def check_keys(settings: Settings, address: str) -> None:
    """Look at the store before anything is loaded; `address` is what the server listens on.

    Raises `ConfigError` for a store that cannot be used, and where others could reach a server that
    has no keys. Makes no store where there is none.
    """
    directory = settings.data_dir
    if _is_there(directory):
        open_database(directory).close()
    with contextlib.closing(KeyView(directory)) as view:
        empty = view.empty()
    if not empty or is_loopback(address):
        return
    if not settings.server.allow_no_keys:
        raise ConfigError(
            f"Others could reach this server on {address}, and it has no API keys (looked in "
            f"{directory}). Make one: onegpu keys create NAME. Or listen on this machine only: "
            "--host 127.0.0.1. Or, if everybody may use it: server.allow_no_keys: true."
        )
    log.warning(
        "There are no API keys: whoever reaches %s may use this server (server.allow_no_keys)",
        address,
    )


def access_rules(server: ServerSettings) -> AccessRules:
    """Return what is open to everybody."""
    paths = HEALTH | {METRICS} if server.open_metrics else HEALTH
    return AccessRules(paths, server.cors_origins, server.host_names)


def _is_there(directory: Path) -> bool:
    try:
        (directory / FILE).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # opening it says what is wrong
    return True
