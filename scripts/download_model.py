"""Downloads a model's quantized weights: the same as `onegpu pull`.

.venv/bin/python scripts/download_model.py qwen3:32b-q4_k_m
"""

from __future__ import annotations

import sys
from pathlib import Path

# Also without an installed onegpu: then the checkout's own package counts.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> int:
    """Run `onegpu pull` with this script's arguments."""
    try:
        from server.cli.main import main as onegpu  # noqa: PLC0415 - needs the path set above

        return onegpu(["pull", *sys.argv[1:]])
    except ModuleNotFoundError as error:
        sys.exit(
            f"This Python ({sys.executable}) has no {error.name}. After `make install`: "
            ".venv/bin/python scripts/download_model.py NAME"
        )


if __name__ == "__main__":
    sys.exit(main())
