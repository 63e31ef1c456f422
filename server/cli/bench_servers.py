"""Which servers `onegpu bench` measures, under which names, and with whose keys."""

from __future__ import annotations

import argparse
import re
import ssl
from collections.abc import Mapping, Sequence
from typing import TypeVar

from server.bench.client import Target
from server.bench.driver import Peer
from server.cli.chat.client import Client, ServerError
from server.cli.chat.url import check_key, parse_url
from server.core.errors import ConfigError
from server.settings.environment import KEY_VARIABLE

_T = TypeVar("_T")


def peers_of(options: argparse.Namespace, environment: Mapping[str, str]) -> list[Peer]:
    """Return the servers, each known to answer. Raises `ConfigError` and `ServerError`."""
    named = [_named(text) for text in options.urls]
    urls = [parse_url(url) for _, url in named]
    keys = _keys(options, environment, {(url.host, url.port) for url in urls})
    models: Sequence[str | None] = _for_each(options.model or [None], len(urls), "--model")
    peers: list[Peer] = []
    for (label, _), url, key, model in zip(named, urls, keys, models, strict=True):
        check_key(key or None)
        port = url.port or (443 if url.secure else 80)
        tls = ssl.create_default_context() if url.secure else None
        target = Target(url.host, port, url.prefix, tls, key)
        shown = label or f"{url.host}:{port}"
        peer = Peer(shown, target, model or _only_model(url.text, key))
        _refuse_twins(peer, peers)
        peers.append(peer)
    return peers


def _refuse_twins(peer: Peer, others: Sequence[Peer]) -> None:
    """Refuse what could not be told apart, or would be measured with a cache that another filled."""
    for other in others:
        if _place(other) == _place(peer):
            raise ConfigError(
                f"{peer.label} is there twice. A server that is asked the same again answers from its cache."
            )
        if other.label == peer.label:
            raise ConfigError(f"Two are called {peer.label}. Name them: NAME=URL.")


def _place(peer: Peer) -> tuple[str, int, str, str]:
    return peer.target.host, peer.target.port, peer.target.prefix, peer.model


def _named(text: str) -> tuple[str, str]:
    """Split `NAME=URL`."""
    found = re.match(r"([^=/:?]+)=(.+)", text)
    return (found[1], found[2]) if found else ("", text)


def _keys(
    options: argparse.Namespace, environment: Mapping[str, str], places: set[tuple[str, int | None]]
) -> list[str]:
    """Return each server's key, empty for none.

    One server's key is no business of another's: with several, each is to be named.
    """
    count = len(options.urls)
    if options.key_from is None:
        key = environment.get(KEY_VARIABLE, "")
        if key and len(places) > 1:
            raise ConfigError(
                f"{KEY_VARIABLE} is set, and there are several servers. Say who gets a key: --key-from "
                f"{KEY_VARIABLE} gives it to all, and --key-from - is for a server without one, given "
                "once for each URL."
            )
        return [key] * count
    keys = []
    for variable in _for_each(options.key_from, count, "--key-from"):
        if variable != "-" and not environment.get(variable):
            raise ConfigError(f"--key-from {variable}: there is no such variable, or it is empty.")
        keys.append("" if variable == "-" else environment[variable].strip())
    return keys


def _for_each(given: Sequence[_T], count: int, flag: str) -> Sequence[_T]:
    if len(given) not in (1, count):
        raise ConfigError(
            f"{flag} is given {len(given)} times for {count} URLs: once, or for each."
        )
    return [*given] * count if len(given) == 1 else given


def _only_model(url: str, key: str) -> str:
    """Return the name of the one model at `url`. Raises `ConfigError` and `ServerError`."""
    try:
        names = [str(card["id"]) for card in Client(url, key or None).models()]
    except ServerError as error:
        if error.status != 404:
            raise
        raise ConfigError(f"{url} does not list its models. Name one with --model.") from error
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise ConfigError(f"{url} has several models, or none: {listed}. Name one with --model.")
    return names[0]
