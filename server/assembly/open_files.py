"""Room for as many connections as the settings promise."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger(__name__)

_OTHER_FILES = 256
"""What a process opens beside connections: models, libraries, the store, connections to refuse."""


def make_room(connections: int) -> None:
    """Let the process have so many connections; without files to open, the system resets them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = connections + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= need:
        return
    most = need if hard == resource.RLIM_INFINITY else min(need, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < need:
        log.warning(
            "This process may open %d files: that is room for %d connections, not for %d. Raise the "
            "limit (ulimit -n, LimitNOFILE, --ulimit nofile), or lower server.max_connections",
            most,
            max(0, most - _OTHER_FILES),
            connections,
        )
