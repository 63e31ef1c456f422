"""Rules of the house that the linters cannot say."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVER = Path(__file__).resolve().parent.parent / "server"
FILES = sorted(SERVER.rglob("*.py"))


def names(path: Path) -> list[str]:
    return [str(file.relative_to(SERVER)) for file in sorted(path.rglob("*.py"))]


def tree(name: str) -> ast.Module:
    return ast.parse((SERVER / name).read_text(encoding="utf-8"))


def environment_reads(module: ast.Module) -> Iterator[int]:
    """Lines that read os.environ or os.getenv; writing a variable for a C library is no reading."""
    written = {
        id(node.value)
        for node in ast.walk(module)
        if (isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del))
        or (isinstance(node, ast.Attribute) and node.attr == "setdefault")
    }
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            if {alias.name for alias in node.names} & {"environ", "environb", "getenv"}:
                yield node.lineno
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
            and node.attr in {"environ", "environb", "getenv"}
            and id(node) not in written
        ):
            yield node.lineno


@pytest.mark.parametrize("name", names(SERVER))
def test_only_settings_read_the_environment(name) -> None:
    if not name.startswith("settings/"):
        assert list(environment_reads(tree(name))) == []


@pytest.mark.parametrize("name", names(SERVER / "core") + names(SERVER / "supervisor"))
def test_core_and_supervisor_import_the_standard_library_only(name) -> None:
    own = ("server.core",) if name.startswith("core/") else ("server.core", "server.supervisor")
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            top = module.split(".")[0]
            assert top in sys.stdlib_module_names or module.startswith(own), module


@pytest.mark.parametrize("name", names(SERVER))
def test_a_file_can_be_read_in_one_sitting(name) -> None:
    lines = (SERVER / name).read_text(encoding="utf-8").count("\n")

    assert lines <= 360, f"{name} has {lines} lines; split it"


def test_the_environment_rule_sees_what_it_must() -> None:
    source = (
        "import os\nfrom os import getenv\nos.environ['A'] = '1'\nos.environ['A']\nos.getenv('B')"
    )

    assert list(environment_reads(ast.parse(source))) == [2, 4, 5]
