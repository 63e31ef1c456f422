"""A store in a directory of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.store.connection import Database, open_database
from server.store.keys import KeyRepository


@pytest.fixture
def database(tmp_path) -> Iterator[Database]:
    with open_database(tmp_path) as opened:
        yield opened


@pytest.fixture
def keys(database) -> KeyRepository:
    return KeyRepository(database)
