"""Every part of the server, made once and handed to those that need it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server import __version__
from server.api.app import create_app
from server.api.limits import ApiLimits
from server.api.parts import Parts as ApiParts
from server.assembly.engine import build_engine
from server.assembly.sizing import Sizes, unplanned
from server.core.clock import Clock
from server.core.errors import ConfigError
from server.engine.inprocess import InProcessEngine
from server.gateway.admission import AdmissionController, AdmissionLimits
from server.gateway.health import Health, HealthLimits
from server.gateway.prompter import Prompter
from server.gateway.service import GenerationService, ServiceLimits
from server.ops.metrics import Metrics
from server.settings import Settings


@dataclass(frozen=True, slots=True)
class Parts:
    """What start-up and shutdown need to reach."""

    engine: InProcessEngine
    admission: AdmissionController
    service: GenerationService
    app: Callable[..., Any]
    """The ASGI application."""


def build(settings: Settings, clock: Clock) -> Parts:
    """Make all parts; nothing runs yet. Raises `ConfigError`."""
    prompter = Prompter(template=_chat_template(settings))
    sizes = unplanned(settings.model, settings.engine)
    engine = build_engine(settings, sizes, prompter, clock)
    admission = AdmissionController(
        AdmissionLimits(slots=sizes.slots, max_queue=settings.gateway.max_queue), clock
    )
    metrics = Metrics(engine, admission)
    service = GenerationService(
        engine, prompter, admission, service_limits(settings, sizes), clock, telemetry=metrics
    )
    app = create_app(
        ApiParts(
            service=service,
            engine=engine,
            health=Health(engine, admission, HealthLimits(settings.engine.stall_after), clock),
            telemetry=metrics,
            render_metrics=metrics.render,
            limits=ApiLimits(
                max_body=settings.server.max_request_size,
                write_timeout=settings.gateway.timeout.write,
                stream_hold=settings.gateway.stream_hold,
                strict=settings.gateway.strict,
            ),
            clock=clock,
            version=__version__,
        )
    )
    return Parts(engine, admission, service, app)


def _chat_template(settings: Settings) -> str | None:
    """Read the template that replaces the GGUF's own. Raises `ConfigError`."""
    path = settings.model.chat_template
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"model.chat_template: cannot read {path}: {error}") from error


def service_limits(settings: Settings, sizes: Sizes) -> ServiceLimits:
    """What the service grants."""
    return ServiceLimits(
        names=(settings.model.name or settings.model.path.stem,),
        slots=sizes.slots,
        n_ctx=sizes.n_ctx,
        default_max_tokens=settings.engine.default_max_tokens,
        connect_timeout=settings.gateway.timeout.connect,
        read_timeout=settings.gateway.timeout.read,
    )
