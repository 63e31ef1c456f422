"""What `pull`, `list`, `show` and `rm` have in common: flags, settings, the library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from server.core.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from server.catalog.library import Library
    from server.settings import Settings

_FLAGS = {
    "models_dir": ("--models-dir", "models_dir"),
    "endpoint": ("--endpoint", "hub.endpoint"),
    "vram": ("--vram", "memory.vram"),
}


def add_library_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every command that looks at the models on this machine."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a YAML file with settings [none]"
    )
    parser.add_argument(
        "--models-dir", metavar="DIR", help="where weights are kept [models_dir: models]"
    )


def add_hub_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every command that may download."""
    parser.add_argument(
        "--endpoint", metavar="URL", help="the hub or a mirror of it [hub.endpoint, HF_ENDPOINT]"
    )
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="a file with an access token [HF_TOKEN]"
    )
    parser.add_argument("--offline", action="store_true", help="download nothing, use what is here")


def load_settings(options: argparse.Namespace) -> Settings:
    """Return the settings with this command's flags. Raises `ConfigError`."""
    from server.settings import Override, load

    given = vars(options)
    flags = [
        Override(tuple(setting.split(".")), flag, given[key])
        for key, (flag, setting) in _FLAGS.items()
        if given.get(key) is not None
    ]
    if given.get("offline"):
        flags.append(Override(("hub", "offline"), "--offline", "true"))
    if given.get("token_file") is not None:
        flags.append(Override(("hub", "token"), "--token-file", _token(given["token_file"])))
    return load(options.config, flags=flags).settings


def library_of(settings: Settings) -> Library:
    """Return the library that the settings describe."""
    from server.catalog.library import open_library

    return open_library(
        settings.models_dir, ollama=settings.hub.ollama, hub_cache=settings.hub.cache
    )


def _token(path: Path) -> str:
    """Read a token. A file, because a flag's text stands in the list of processes."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {path} cannot be read: {error}") from error
    if not text or "\n" in text:
        raise ConfigError(f"--token-file {path} must hold one token on one line.")
    return text
