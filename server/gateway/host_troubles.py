"""What to tell those who want a model that is not there."""

from __future__ import annotations

from server.core.errors import EngineDead, ModelFailed, ModelLoading, OnegpuError
from server.engine.interface import EngineState
from server.gateway.host import Host, HostState

_BYTES_PER_SECOND = 1e9
"""A disk's pace, for the estimate of a load that was never measured."""


def loading(host: Host, now: float) -> ModelLoading:
    """Tell how far a host is that is not loaded, and when to come back."""
    name, left = host.spec.name, _seconds_left(host, now)
    if host.state is HostState.LOADING:
        told = f"The model {name!r} is loading, {host.progress():.0%} done."
    else:
        told = f"The model {name!r} waits to be loaded."
    return ModelLoading(f"{told} About {left:.0f} s are left.", retry_after=left)


def failed(host: Host) -> ModelFailed | None:
    """Tell why the last load of a host failed, if that is how it stands."""
    if host.state is not HostState.FAILED or host.error is None:
        return None
    return not_loaded(host, host.error)


def not_loaded(host: Host, error: OnegpuError) -> ModelFailed:
    """Tell that a host does not load because of `error`."""
    return ModelFailed(f"The model {host.spec.name!r} could not be loaded: {error.message}")


def dead(host: Host) -> EngineDead | None:
    """What killed the engine of a loaded host, if something has."""
    status = host.status()
    if host.state is HostState.READY and status is not None and status.state is EngineState.DEAD:
        return EngineDead(status.error or "The engine stopped.")
    return None


def _seconds_left(host: Host, now: float) -> float:
    """Estimate when a host is loaded, by its last load or by its size."""
    footprint = host.spec.footprint
    whole = host.load_seconds or (footprint.gpu + footprint.cpu) / _BYTES_PER_SECOND
    done = host.progress()
    if host.state is HostState.LOADING and done > 0:
        whole = (now - host.load_started) / done
    return max(1.0, whole * (1 - done))
