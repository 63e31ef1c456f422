"""What the machine has, for defaults that depend on it."""

from __future__ import annotations

import os
from pathlib import Path

_SYSTEM = Path("/")


def physical_cores(root: Path = _SYSTEM) -> int:
    """Cores that this process may use, hyper-threads counted once, at least 1.

    Reads the affinity mask, the topology in sysfs and the control group's CPU quota below `root`;
    a container with a quota of two CPUs on a large machine gets 2.
    """
    allowed = _allowed_cpus()
    cores = {_core_of(cpu, root) for cpu in allowed}
    quota = _quota(root)
    return max(1, min(len(cores), quota) if quota else len(cores))


def logical_cpus(root: Path = _SYSTEM) -> int:
    """CPUs that this process may use, hyper-threads counted as well, at least 1."""
    allowed, quota = len(_allowed_cpus()), _quota(root)
    return max(1, min(allowed, quota) if quota else allowed)


def _allowed_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _core_of(cpu: int, root: Path) -> tuple[str, str]:
    """Package and core of `cpu`; the CPU itself where sysfs does not tell."""
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    try:
        package = (topology / "physical_package_id").read_text(encoding="ascii").strip()
        core = (topology / "core_id").read_text(encoding="ascii").strip()
    except OSError:
        return ("cpu", str(cpu))
    return (package, core)


def _quota(root: Path) -> int:
    """Whole CPUs that the control group allows; 0 for no limit."""
    try:
        text = (root / "sys/fs/cgroup/cpu.max").read_text(encoding="ascii")
        limit, period = text.split()[:2]
        return 0 if limit == "max" else max(1, int(limit) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return 0
