"""The configuration: one YAML file, `ONEGPU_*` variables and command-line flags, validated as one.

Only this package reads the environment. `server.cli` loads, `server.assembly` hands the parts on;
no lower layer imports it.
"""

from server.settings.gateway import (
    GatewaySettings,
    GpuGuardSettings,
    RateLimitSettings,
    TimeoutSettings,
)
from server.settings.hosting import HubSettings, MemorySettings, ServedModelSettings
from server.settings.loading import Loaded, Override, load
from server.settings.problems import Origin, Problem, SettingsError
from server.settings.remotes import RemoteSettings
from server.settings.schema import (
    EngineSettings,
    LoggingSettings,
    ModelSettings,
    RopeSettings,
    ServerSettings,
    Settings,
)

__all__ = [
    "EngineSettings",
    "GatewaySettings",
    "GpuGuardSettings",
    "HubSettings",
    "Loaded",
    "LoggingSettings",
    "MemorySettings",
    "ModelSettings",
    "Origin",
    "Override",
    "Problem",
    "RateLimitSettings",
    "RemoteSettings",
    "RopeSettings",
    "ServedModelSettings",
    "ServerSettings",
    "Settings",
    "SettingsError",
    "TimeoutSettings",
    "load",
]
