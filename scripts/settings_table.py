"""Writes docs/settings.md from the settings' own descriptions; a test holds the two together.

.venv/bin/python scripts/settings_table.py
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from server.settings import RemoteSettings, ServedModelSettings, Settings
from server.settings.environment import variable_name
from server.settings.fields import keys, leaves
from server.settings.report import written

TARGET = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
_HEAD = """\
# Settings

Each key can stand in the YAML file (`onegpu serve --config FILE`; onegpu.example.yaml has them all)
or be a variable, which wins over the file. Flags of `onegpu serve` win over both.
`onegpu check-config FILE` shows the values in force and where each comes from.

Durations are written `500ms`, `30s`, `5m`, `2h` (a plain number is seconds), sizes `500KB`, `10MB`,
`24GiB` (a plain number is bytes). In a variable `null` is the empty value.

SIGHUP (`kill -HUP`, `systemctl reload`) has the file read again. What needs no model to be loaded again applies
at once, for requests that come after it: `gateway` (but not `gateway.gpu_guard.mode` and `gateway.gpu_guard.interval`),
`server` (but not `server.host`, `server.port` and `server.supervised`), `logging`, `aliases`, `remotes` and
`engine.stall_after`.
The log says what has changed and what only a restart brings. If anything is wrong, nothing changes.

| key | default | variable | meaning |
|---|---|---|---|
"""

_ENTRIES = """
## One of `{name}`

| key | default | meaning |
|---|---|---|
"""


def render() -> str:
    """The whole document."""
    rows = [
        f"| `{'.'.join(path)}` | {_default(field)} | `{variable_name(path)}` "
        f"| {field.description} |\n"
        for path, field in leaves(Settings)
    ]
    models, remotes = _entry("models", ServedModelSettings), _entry("remotes", RemoteSettings)
    return _HEAD + "".join(rows) + models + remotes


def _entry(section: str, model: type[BaseModel]) -> str:
    rows = [
        f"| `{name}` | {_default(field)} | {field.description} |\n"
        for name, field in keys(model).items()
    ]
    return _ENTRIES.format(name=section) + "".join(rows)


def _default(field: FieldInfo) -> str:
    return (
        ""
        if field.is_required()
        else f"`{written(field, field.get_default(call_default_factory=True))}`"
    )


def main() -> None:
    """Write the document."""
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(render(), encoding="utf-8")
    print(f"wrote {TARGET.name}")


if __name__ == "__main__":
    main()
