"""Whether the server in this container is alive: exit status 0 or 1, with a line that says why.

Asks /health/live, which fails when the engine is dead or has stopped moving; loading a model counts
as alive. The port is ONEGPU_SERVER__PORT, else 8000: set it there rather than with --port.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

_SECONDS = 8


def main() -> int:
    """Ask once."""
    port = os.environ.get("ONEGPU_SERVER__PORT", "8000")
    url = f"http://127.0.0.1:{port}/health/live"
    # A proxy from the environment must not be asked about this very container.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=_SECONDS) as answer:
            print(answer.read(2000).decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        print(f"{url}: {error.code} {error.read(2000).decode('utf-8', 'replace')}")
        return 1
    except OSError as error:
        print(f"{url}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
