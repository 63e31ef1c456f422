"""`onegpu keys`: what it prints where, what it refuses, and that a running view sees it."""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import time

import pytest

from server.cli import keys as command
from server.cli.keys_options import expiry
from server.cli.parsing import Parser
from server.core.errors import OnegpuError
from server.store.connection import FILE
from server.store.key_text import id_of
from server.store.key_view import KeyView

KEY = re.compile(r"ogk_[0-9A-Za-z]{10}_[0-9A-Za-z]{49}\n")


@pytest.fixture
def onegpu(tmp_path, capsys):
    """Run `onegpu keys …`; returns status, standard output, standard error."""

    def run(*argv: str) -> tuple[int, str, str]:
        parser = Parser(prog="onegpu", description="")
        command.add_parser(parser.add_subparsers(parser_class=Parser))
        try:
            options = parser.parse_args(["keys", *argv, "--data-dir", str(tmp_path / "data")])
            status = options.run(options)
        except SystemExit as stop:
            status = stop.code
        except OnegpuError as error:
            print(error.message, file=sys.stderr)
            status = 2
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def listed(onegpu) -> list[dict]:
    status, out, _ = onegpu("list", "--json")
    assert status == 0
    return json.loads(out)


def test_a_key_is_shown_once_alone_on_standard_output(onegpu, tmp_path) -> None:
    status, out, err = onegpu("create", "ci")

    assert status == 0
    assert KEY.fullmatch(out)
    assert "'ci'" in err
    assert out.strip() not in err
    for shown in onegpu("list"), onegpu("list", "--json"):
        assert out.strip().rpartition("_")[2] not in "".join(map(str, shown))
    with contextlib.closing(KeyView(tmp_path / "data")) as view:
        found = view.find(id_of(out.strip()))
    assert found is not None
    assert found.matches(out.strip(), time.time())


def test_all_flags_reach_the_key(onegpu) -> None:
    flags = "--rpm 12 --burst 3 --tpm unlimited --max-concurrent 2 --priority batch --models a,b"
    flags += " --max-context 4096 --max-tokens 100 --weight 2.5 --expires 30d --admin"

    assert onegpu("create", "ci", *flags.split())[0] == 0

    (key,) = listed(onegpu)
    left = key.pop("expires") - time.time()
    assert 29.9 * 86400 < left <= 30 * 86400
    assert {name: key[name] for name in key if name not in ("id", "created", "prefix")} == {
        "name": "ci",
        "state": "active",
        "revoked": None,
        "admin": True,
        "rpm": 12,
        "burst": 3,
        "tpm": 0,
        "max_concurrent": 2,
        "max_context": 4096,
        "max_tokens": 100,
        "priority": "batch",
        "weight": 2.5,
        "models": ["a", "b"],
    }
    row = onegpu("list")[1].splitlines()[1]
    assert "rpm 12 burst 3 tpm unlimited max-concurrent 2 max-context 4096" in row
    assert row.endswith("max-tokens 100 batch weight 2.5 models a,b")


def test_a_life_of_a_key(onegpu) -> None:
    first = onegpu("create", "ci")[1].strip()
    status, out, err = onegpu("rotate", "ci", "--overlap", "10m")
    assert (status, id_of(out.strip())) == (0, id_of(first))
    assert "counts until" in err
    status, out, err = onegpu("rotate", first[:14])
    assert (status, id_of(out.strip())) == (0, id_of(first))
    assert "is over" in err

    assert onegpu("revoke", "ci") == (0, f"revoked ci ({first[:14]})\n", "")
    assert "revoked" in onegpu("list")[1].splitlines()[1]
    assert onegpu("rotate", "ci")[0] == 2
    assert onegpu("create", "ci")[0] == 0
    assert [key["state"] for key in listed(onegpu)] in (
        ["revoked", "active"],
        ["active", "revoked"],
    )


def test_json_has_the_secret_where_it_is_new_and_nowhere_else(onegpu) -> None:
    document = json.loads(onegpu("create", "ci", "--json")[1])
    assert id_of(document["key"]) == document["id"]
    assert id_of(json.loads(onegpu("rotate", "ci", "--json")[1])["key"]) == document["id"]
    assert "key" not in listed(onegpu)[0]
    assert "key" not in json.loads(onegpu("revoke", "ci", "--json")[1])[0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("create", "required: NAME"),
        ("create x --rpm 0", "--rpm: must be a whole number, 1 or more, or unlimited, not '0'"),
        ("create x --rpm 1.5", "--rpm: must be a whole number"),
        ("create x --rpm ٣", "--rpm: must be a whole number"),
        ("create x --burst unlimited", "--burst: must be a whole number, 1 or more, not"),
        ("create x --max-tokens 99999999999999999999999", "--max-tokens: must be"),
        ("create x --weight nan", "--weight: must be a number from 0.001 to 1000"),
        ("create x --weight -1", "--weight: must be a number"),
        ("create x --priority urgent", "--priority: invalid choice"),
        ("create x --models a,,b", "--models: must be names with commas"),
        ("create x --expires soon", "--expires: must be a duration"),
        ("create x --expires 2020-01-01", "--expires: 2020-01-01 is over already"),
        ("create x --expires 0s", "--expires: 0s is over already"),
        ("create x --expires 9999999d", "beyond the year 9999"),
        ("create x --expires 2030-13-01", "neither a duration"),
        ("rotate x --overlap=-1s", "--overlap: must be a duration"),
        ("rotate x --overlap 9999999d", "--overlap: must be 100 years or less"),
        ("rotate x --overlap 99999999999999999999d", "--overlap: must be 100 years or less"),
        ("revoke nobody", "There is no key 'nobody'"),
        ("rotate nobody", "There is no key 'nobody'"),
        ("create ogk_secretsecret", "must not begin with ogk_"),
    ],
)
def test_what_cannot_be_is_refused_with_the_flag(onegpu, argv, message) -> None:
    status, out, err = onegpu(*argv.split())

    assert (status, out) == (2, "")
    assert message in err
    assert "secretsecret" not in err
    assert listed(onegpu) == []


def test_an_empty_list_says_what_to_do(onegpu) -> None:
    assert onegpu("list") == (0, "No keys: onegpu keys create NAME makes one.\n", "")


def test_a_damaged_store_is_told_with_the_way_out(onegpu, tmp_path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / FILE).write_bytes(b"garbage" * 1000)

    for argv in (["list"], ["create", "x"], ["revoke", "x"]):
        status, out, err = onegpu(*argv)
        assert (status, out) == (2, "")
        assert "is damaged" in err


def test_days_are_read_as_utc_and_instants_as_they_are() -> None:
    assert expiry("2100-01-01") == 4102444800
    assert expiry("2100-01-01T02:00+02:00") == 4102444800
    for text in ("", "-", "2100-1-1", "0001-01-01T00:00+23:59"):
        with pytest.raises(argparse.ArgumentTypeError):
            expiry(text)


def test_a_secret_that_nobody_could_read_is_told(tmp_path) -> None:
    script = (
        "import sys\nfrom server.cli import keys\nfrom server.cli.parsing import Parser\n"
        "from server.core.errors import OnegpuError\n"
        "parser = Parser(prog='onegpu', description='')\n"
        "keys.add_parser(parser.add_subparsers(parser_class=Parser))\n"
        "options = parser.parse_args(sys.argv[1:])\n"
        "try:\n    options.run(options)\n"
        "except OnegpuError as error:\n    sys.exit(error.message)\n"
    )
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123 - a device
        ended = subprocess.run(
            [sys.executable, "-c", script, "keys", "create", "x", "--data-dir", str(tmp_path)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert ended.returncode == 1
    assert "Nobody has read the secret: `onegpu keys rotate ogk_" in ended.stderr


def test_other_terminals_get_other_names_in_escapes(onegpu, tmp_path) -> None:
    onegpu("create", "日本")
    script = (
        "import sys\nfrom server.cli import keys\nfrom server.cli.parsing import Parser\n"
        "parser = Parser(prog='onegpu', description='')\n"
        "keys.add_parser(parser.add_subparsers(parser_class=Parser))\n"
        "options = parser.parse_args(sys.argv[1:])\nsys.exit(options.run(options))\n"
    )
    data = str(tmp_path / "data")
    ended = subprocess.run(
        [sys.executable, "-c", script, "keys", "list", "--data-dir", data],
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )

    assert r"\u65e5\u672c" in ended.stdout
