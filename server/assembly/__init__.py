"""Composition root: builds every part from the settings, starts them and stops them in order."""

from server.assembly.lifecycle import serve

__all__ = ["serve"]
