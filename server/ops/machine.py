"""System memory that this process can still get, and what its CPU is and can do."""

from __future__ import annotations

import platform
from pathlib import Path

_SYSTEM = Path("/")
_UNLIMITED = 1 << 60


def available_memory(root: Path = _SYSTEM) -> int | None:
    """Bytes that can be had: what the system has available, and no more than the control group allows.

    Reads /proc/meminfo and the limits of every control group above this process, version 2 or 1,
    below `root`. File pages count as available: they give way. None where nothing can be read.
    """
    found = [value for value in (_meminfo(root), _group_room(root)) if value is not None]
    return min(found) if found else None


def cpu_flags(root: Path = _SYSTEM) -> frozenset[str]:
    """Return what /proc/cpuinfo calls `flags` (x86) or `Features` (ARM)."""
    for line in _lines(root / "proc/cpuinfo"):
        name, _, rest = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(rest.split())
    return frozenset()


def cpu_name(root: Path = _SYSTEM) -> str:
    """Return what /proc/cpuinfo calls the model; elsewhere the kind of processor."""
    for line in _lines(root / "proc/cpuinfo"):
        name, _, rest = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return rest.strip()
    return platform.machine()


def _meminfo(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _group_room(root: Path) -> int | None:
    """Least room of this process's control groups."""
    rooms = [
        room
        for folder, limit, usage, cache in _groups(root)
        if (room := _room(folder, limit, usage, cache)) is not None
    ]
    return min(rooms) if rooms else None


def _groups(root: Path) -> list[tuple[Path, str, str, str]]:
    """List the folders of all control groups above this process, with their files' names."""
    found: list[tuple[Path, str, str, str]] = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = root / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
        names = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if controllers
            else ("memory.max", "memory.current", "inactive_file")
        )
        folder = mount / path.strip().lstrip("/")
        while True:
            found.append((folder, *names))
            if folder == mount or mount not in folder.parents:
                break
            folder = folder.parent
    return found


def _room(folder: Path, limit: str, usage: str, cache: str) -> int | None:
    allowed, used = _number(folder / limit), _number(folder / usage)
    if allowed is None or used is None or allowed >= _UNLIMITED:
        return None
    reclaimable = next(
        (
            int(line.split()[1])
            for line in _lines(folder / "memory.stat")
            if line.startswith(f"{cache} ")
        ),
        0,
    )
    return max(allowed - used + reclaimable, 0)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
        return None if text == "max" else int(text)
    except (OSError, ValueError):
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
