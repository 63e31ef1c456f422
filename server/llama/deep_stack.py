"""Running native code that recurses as deep as its input nests, where an overflow would end the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ClassVar, TypeVar

Result = TypeVar("Result")

_BYTES = 512 << 20
"""Addresses: memory is what is really used, and it goes back with the thread."""


class DeepStack:
    """Runs work in threads of its own. For any thread."""

    _starting: ClassVar = threading.Lock()
    """One for the process, as the size is: beside another model's compilation a thread could get the small one."""

    def run(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns, or raise what it raises. Waits for it."""
        results: list[Result] = []
        errors: list[BaseException] = []

        def body() -> None:
            try:
                results.append(work())
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
                errors.append(error)

        thread = threading.Thread(target=body, name="grammar")
        # The size is the process's: whoever else starts a thread in this moment gets as many addresses.
        with self._starting:
            before = threading.stack_size(_BYTES)
            try:
                thread.start()
            finally:
                threading.stack_size(before)
        thread.join()
        if errors:
            raise errors[0]
        return results[0]
