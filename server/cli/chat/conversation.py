"""One chat as the terminal keeps it: messages, settings, and its form in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.core.errors import ConfigError

_KINDS: dict[str, type] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "typical_p": float,
    "repeat_penalty": float,
    "repeat_last_n": int,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
    "max_tokens": int,
    "stop": str,
    "think": bool,
}
SETTINGS = tuple(_KINDS)
"""What `/set` knows; the names are those of the API, but for `think` (`enable_thinking` there)."""
_OTHER_NAMES = {"num_predict": "max_tokens", "thinking": "think"}
_TRUTH = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(slots=True)
class Conversation:
    """A chat with one model."""

    model: str
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def request(self) -> dict[str, Any]:
        """Return the body of the next request."""
        settings = dict(self.settings)
        if "think" in settings:
            settings["enable_thinking"] = settings.pop("think")
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return {"model": self.model, "messages": [*system, *self.messages], **settings}

    def set(self, name: str, text: str) -> str:
        """Change a setting, or forget it with `default`; return its name.

        Raises `ConfigError`. Ranges are the server's to judge.
        """
        name = _OTHER_NAMES.get(name.lower(), name.lower())
        if name not in _KINDS:
            raise ConfigError(f"There is no setting {name!r}. There is {', '.join(SETTINGS)}.")
        if text.lower() == "default":
            self.settings.pop(name, None)
            return name
        kind = _KINDS[name]
        try:
            if kind is bool:
                self.settings[name] = _TRUTH[text.lower()]
            elif kind is str:
                self.settings[name] = [*self.settings.get(name, []), text]
            else:
                self.settings[name] = kind(text)
        except (KeyError, ValueError) as error:
            wanted = {bool: "on or off", int: "a whole number", float: "a number"}[kind]
            raise ConfigError(f"{name} must be {wanted} (or default), not {text!r}.") from error
        return name

    def save(self, path: Path) -> None:
        """Write the chat as JSON. Raises `ConfigError`; replaces nothing but another saved chat."""
        document = {
            "model": self.model,
            "system": self.system,
            "messages": self.messages,
            "settings": self.settings,
        }
        if path.exists() and not _is_chat(path):
            raise ConfigError(f"{path} exists and is not a saved chat. Choose another name.")
        part = path.with_name(f"{path.name}.part")
        try:
            part.write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error

    def load(self, path: Path) -> None:
        """Take over a saved chat, but for its model. Raises `ConfigError`; then nothing changed."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise ConfigError(f"{path} is not a saved chat: {error}.") from error
        if problem := _chat_problem(document):
            raise ConfigError(f"{path} is not a saved chat: {problem}.")
        self.messages = document["messages"]
        self.system = document.get("system")
        self.settings = dict(document.get("settings") or {})


def _is_chat(path: Path) -> bool:
    try:
        return _chat_problem(json.loads(path.read_text(encoding="utf-8"))) is None
    except (OSError, ValueError):
        return False


def _chat_problem(document: Any) -> str | None:
    if not isinstance(document, Mapping) or not isinstance(document.get("messages"), list):
        return "it has no list of messages"
    for number, message in enumerate(document["messages"], 1):
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            return f"message {number} has no role that is known"
        if not isinstance(message.get("content"), str):
            return f"message {number} has no text"
    if not isinstance(document.get("system"), str | None):
        return "its system prompt is not text"
    return _settings_problem(document.get("settings") or {})


def _settings_problem(settings: Any) -> str | None:
    if not isinstance(settings, Mapping):
        return "its settings are no object"
    unknown = [key for key in settings if key not in _KINDS]
    return f"it has an unknown setting {unknown[0]!r}" if unknown else None
