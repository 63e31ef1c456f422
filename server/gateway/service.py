"""From a validated request to running sequences: the one way into the engine."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

from server.core.clock import Clock
from server.core.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound
from server.core.request import GenerationRequest
from server.engine.interface import Engine, ModelInfo, Tokenizer, TokenStreamLike
from server.gateway.admission import AdmissionController
from server.gateway.generation import Generation, GenerationContext
from server.gateway.prompter import Prompter
from server.gateway.spec import ChatPrompt, GenerationSpec
from server.gateway.telemetry import NullTelemetry, Telemetry

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What the service grants. Times are in seconds."""

    names: tuple[str, ...]
    """Names that the model is served under; the first is the one that answers carry."""
    slots: int
    n_ctx: int
    """Most tokens of one sequence, prompt and output together."""
    default_max_tokens: int = 2048
    connect_timeout: float = 30.0
    """Longest wait for a slot, then `QueueTimeout`."""
    read_timeout: float = 120.0
    """Longest silence of the engine once a slot was found, then `EngineTimeout`."""
    tokenizer_threads: int = 2


class GenerationService:
    """Admits, tokenizes, checks and submits. Belongs to the event loop."""

    def __init__(
        self,
        engine: Engine,
        prompter: Prompter,
        admission: AdmissionController,
        limits: ServiceLimits,
        clock: Clock,
        *,
        telemetry: Telemetry | None = None,
    ) -> None:
        """`prompter` is bound to the model by whoever loads it."""
        self.limits = limits
        self.prompter = prompter
        self.admission = admission
        self._engine = engine
        self._clock = clock
        self._context = GenerationContext(
            engine,
            admission,
            telemetry or NullTelemetry(),
            clock,
            read_timeout=limits.read_timeout,
            queue_timeout=limits.connect_timeout,
        )
        self._threads = ThreadPoolExecutor(limits.tokenizer_threads, "tokenize")

    def resolve(self, name: str | None) -> str:
        """Return the served name for the one a client used. Raises `ModelNotFound`."""
        if name is not None and name not in self.limits.names:
            raise ModelNotFound(
                f"The model {name!r} does not exist here; this server serves "
                f"{', '.join(map(repr, self.limits.names))}.",
                param="model",
            )
        return self.limits.names[0]

    def model(self) -> tuple[ModelInfo, Tokenizer]:
        """Return facts and vocabulary. Raises `ModelLoading`, `EngineDead` or `Draining`."""
        return self._engine.model

    async def open(self, spec: GenerationSpec) -> Generation:
        """Start what `spec` asks for; the caller must `close()` what is returned.

        Raises `ModelNotFound`, `InvalidRequest`, `ContextLengthExceeded` and all `Unavailable`s.
        """
        model = self.resolve(spec.model)
        _, tokenizer = self._engine.model
        self._check_choices(spec)
        _check_bias(spec, tokenizer.n_vocab)
        ticket = self.admission.admit(spec.n * len(spec.prompts))
        generation = Generation(model, self._context, ticket)
        try:
            prompts = await self.in_thread(self._encode, spec)
            generation.attach(prompts, self._submit(self._requests(spec, prompts)))
        except BaseException:
            generation.close()
            raise
        return generation

    async def in_thread(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run template and tokenizer work off the event loop, few at a time."""
        call = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def shutdown(self) -> None:
        """End the worker threads; nothing may be opened afterwards."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _encode(self, spec: GenerationSpec) -> list[list[int]]:
        return [self.prompter.encode(prompt, self.limits.n_ctx) for prompt in spec.prompts]

    def _check_choices(self, spec: GenerationSpec) -> None:
        if spec.n > self.limits.slots:
            raise InvalidRequest(
                f"n is {spec.n}, but this server runs at most {self.limits.slots} choices at once "
                f"(its number of slots). Ask for at most {self.limits.slots}.",
                param="n",
            )
        if spec.n * len(spec.prompts) > self.admission.capacity:
            raise InvalidRequest(
                f"{len(spec.prompts)} prompts with n = {spec.n} are more than this server's line "
                f"holds ({self.admission.capacity}). Send fewer prompts in one request.",
                param="prompt",
            )

    def _requests(
        self, spec: GenerationSpec, prompts: Sequence[list[int]]
    ) -> list[GenerationRequest]:
        """One request per choice; a given seed is counted up so that choices differ."""
        chat = isinstance(spec.prompts[0], ChatPrompt)
        deadline = self._clock.monotonic() + self.limits.connect_timeout
        first = spec.sampling.seed
        requests = []
        for number in range(len(prompts) * spec.n):
            prompt = prompts[number // spec.n]
            sampling = spec.sampling
            if first is not None and number % spec.n:
                sampling = replace(sampling, seed=(first + number % spec.n) % 2**32)
            requests.append(
                GenerationRequest(
                    request_id=f"{spec.request_id}-{number}",
                    prompt=prompt,
                    max_tokens=self._max_tokens(spec, len(prompt), chat=chat),
                    sampling=sampling,
                    stop=spec.stop,
                    ignore_eos=spec.ignore_eos,
                    logprobs=spec.logprobs,
                    reuse_prefix=spec.reuse_prefix,
                    # The others follow the first in the line. Once that one runs, to give up on
                    # one of them would throw away the work of all.
                    deadline=deadline if number == 0 else None,
                )
            )
        return requests

    def _max_tokens(self, spec: GenerationSpec, prompt: int, *, chat: bool) -> int:
        n_ctx = self.limits.n_ctx
        if prompt + (spec.max_tokens or 1) > n_ctx:
            raise ContextLengthExceeded(
                prompt_tokens=prompt,
                max_tokens=spec.max_tokens,
                n_ctx=n_ctx,
                param="messages" if chat else "prompt",
            )
        return spec.max_tokens or min(self.limits.default_max_tokens, n_ctx - prompt)

    def _submit(self, requests: Sequence[GenerationRequest]) -> list[TokenStreamLike]:
        """Submit all or none."""
        streams: list[TokenStreamLike] = []
        try:
            for request in requests:
                streams.append(self._engine.submit(request))  # noqa: PERF401 - kept on failure
        except BaseException:
            for stream in streams:
                stream.abort()
            raise
        return streams


def _check_bias(spec: GenerationSpec, n_vocab: int) -> None:
    for token in spec.sampling.logit_bias:
        if not 0 <= token < n_vocab:
            raise InvalidRequest(
                f"Token id {token} is out of range: this model's ids are 0 to {n_vocab - 1}.",
                param="logit_bias",
            )
