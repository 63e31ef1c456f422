"""Instructions of the engine's thread per step, counted by callgrind, whatever else the machine does.

    python scripts/count_instructions.py --streams 4,64 [--tree DIRECTORY] [--top 12]

Runs `engine_step` of bench_hot_path.py (C calls of a step return at once) of this checkout, or of another one, under
`valgrind --tool=callgrind`, and counts between its two looks at the clock. valgrind 3.19 knows no AVX-512: where
llama.cpp was built with it, point `LLAMA_CPP_LIB_PATH` to a copy of its libraries whose libggml-cpu was built without.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_MEASURED = """
import sys
from pathlib import Path
from bench_hot_path import engine_step
engine_step(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
"""


def counted(tree: Path, model: Path, streams: int, steps: int, into: Path) -> Path:
    """Run the steps under callgrind; return the file that has those alone."""
    out = into / f"callgrind.{streams}"
    command = ["valgrind", "--tool=callgrind", "--dump-before=time_perf_counter"]
    command += [f"--callgrind-out-file={out}", sys.executable, "-c", _MEASURED]
    command += [str(model.resolve()), str(streams), str(steps)]
    paths = os.pathsep.join([str(tree), str(tree / "scripts")])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "0"}
    ended = subprocess.run(
        command, cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    dumps = sorted(into.glob(f"{out.name}.*"), key=lambda path: int(path.suffix[1:]))
    if ended.returncode or not dumps:
        raise SystemExit(f"valgrind ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    return dumps[-1]


def instructions(dump: Path) -> int:
    """Return how many instructions a dump has."""
    (total,) = re.findall(r"^(?:totals|summary): (\d+)$", dump.read_text("utf-8"), re.MULTILINE)[:1]
    return int(total)


def top(dump: Path, count: int) -> list[str]:
    """Return the functions with most instructions of their own, and their share."""
    names: dict[str, str] = {}
    own: Counter[str] = Counter()
    function, called = "", False
    for line in dump.read_text("utf-8").splitlines():
        if line.startswith("fn="):
            number, _, name = line[3:].partition(" ")
            function = names.setdefault(number, name).partition("'")[0]
        elif line.startswith("cfn="):
            number, _, name = line[4:].partition(" ")
            names.setdefault(number, name)
        elif line.startswith("calls="):
            called = True  # the next line has what the called function took
        elif line[:1] in {*"+-*0123456789"}:
            if not called:
                own[function] += int(line.split()[-1])
            called = False
    whole = sum(own.values())
    return [f"{cost / whole:6.1%} {name}" for name, cost in own.most_common(count)]


def main() -> None:
    """Parse the command line, count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "demo.gguf")
    parser.add_argument("--streams", default="4,64")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tree", type=Path, default=ROOT, help="another checkout")
    parser.add_argument("--top", type=int, default=0, help="functions to show")
    options = parser.parse_args()
    for streams in map(int, options.streams.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            dump = counted(
                options.tree.resolve(), options.model, streams, options.steps, Path(folder)
            )
            each = instructions(dump) / options.steps
            print(f"{streams:3} streams  {each:12,.0f} a step  {each / streams:10,.0f} a row")
            for line in top(dump, options.top):
                print(f"    {line}")


if __name__ == "__main__":
    main()
