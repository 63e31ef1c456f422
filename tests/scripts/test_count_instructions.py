"""What callgrind's file says of each function."""

from __future__ import annotations

from pathlib import Path

from count_instructions import instructions, top

DUMP = """\
events: Ir
summary: 1000

fl=(1) eval.c
fn=(1) evaluate
16 100
+3 20
cfn=(2) look_up
calls=4 30
16 600
fn=(2)
* 500
-2 100
fn=(3) evaluate'2
7 280

totals: 1000
"""


def test_each_function_has_its_own_instructions_and_not_those_of_whom_it_calls(
    tmp_path: Path,
) -> None:
    path = tmp_path / "callgrind.1"
    path.write_text(DUMP, "utf-8")
    assert instructions(path) == 1000
    assert top(path, 1) == [" 60.0% look_up"]
    assert top(path, 9) == [" 60.0% look_up", " 40.0% evaluate"]
