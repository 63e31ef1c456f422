"""Instructions of the engine's thread per step, counted by callgrind: exact, whatever else the machine does.

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
    command += [str(model), str(streams), str(steps)]
    paths = os.pathsep.join([str(tree), str(tree / "scripts")])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    dumps = sorted(into.glob(f"{out.name}.*"), key=lambda path: int(path.suffix[1:]))
    if ended.returncode or not dumps:
        raise SystemExit(f"valgrind ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    return dumps[-1]


def instructions(dump: Path) -> int:
    """Return how many instructions a dump has."""
    (total,) = re.findall(r"^(?:totals|summary): (\d+)$", dump.read_text("utf-8"), re.MULTILINE)[:1]
    return int(total)


def top(dump: Path, count: int) -> list[str]:
    """Return the functions with most instructions of their own."""
    command = ["callgrind_annotate", "--threshold=100", str(dump)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^ *[\d,]+ \( ?[\d.]+%\) .*$", told, re.MULTILINE)
    return [line for line in lines if "PROGRAM TOTALS" not in line][:count]


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
                print(f"    {line.strip()}")


if __name__ == "__main__":
    main()
