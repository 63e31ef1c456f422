"""What each PARAMETER means here: honoured, answered with what is used instead, or refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.catalog.modelfile.document import FOREVER
from server.catalog.modelfile.syntax import Instruction, Source, nearest

_MOST = 2**31 - 1
MOST_STOPS = 16
"""As many as a request may have."""


@dataclass(frozen=True, slots=True)
class _Number:
    """A sampling parameter and its range, which is the API's."""

    kind: type[int | float]
    low: float
    high: float
    open_low: bool = False


SAMPLING: dict[str, _Number] = {
    "temperature": _Number(float, 0, 100),
    "top_k": _Number(int, -1, _MOST),
    "top_p": _Number(float, 0, 1),
    "min_p": _Number(float, 0, 1),
    "typical_p": _Number(float, 0, 1, open_low=True),
    "top_n_sigma": _Number(float, -1, 1000),
    "xtc_probability": _Number(float, 0, 1),
    "xtc_threshold": _Number(float, 0, 1),
    "dynatemp_range": _Number(float, 0, 100),
    "dynatemp_exponent": _Number(float, 0, 100),
    "repeat_penalty": _Number(float, 0, 100, open_low=True),
    "repeat_last_n": _Number(int, -1, _MOST),
    "presence_penalty": _Number(float, -2, 2),
    "frequency_penalty": _Number(float, -2, 2),
    "dry_multiplier": _Number(float, 0, 100),
    "dry_base": _Number(float, 0, 100),
    "dry_allowed_length": _Number(int, 0, _MOST),
    "dry_penalty_last_n": _Number(int, -1, _MOST),
    "mirostat": _Number(int, 0, 2),
    "mirostat_tau": _Number(float, 0, 100),
    "mirostat_eta": _Number(float, 0, 100),
    "seed": _Number(int, -(2**63), 2**64 - 1),
}
"""Parameters that are fields of `SamplingParams`."""

INSTEAD: dict[str, str] = {
    "num_keep": "a chat is never shifted out of the context; PARAMETER overflow says what happens",
    "num_batch": "the setting engine.n_batch is used, for all models alike",
    "num_thread": "the setting engine.threads is used",
    "main_gpu": "the setting model.main_gpu is used",
    "use_mmap": "the setting model.mmap is used",
    "use_mlock": "the setting model.mlock is used",
    "low_vram": "num_gpu and the setting engine.kv_type save GPU memory",
    "f16_kv": "the setting engine.kv_type is used",
    "numa": "the operating system's placement is used",
    "num_gqa": "the GGUF says it itself",
    "rope_frequency_base": "the GGUF's own value is used; model.rope_scaling sets another",
    "rope_frequency_scale": "the GGUF's own value is used; model.rope_scaling sets another",
    "logits_all": "log-probabilities are a field of the request (logprobs)",
    "vocab_only": "the whole model is loaded",
    "embedding_only": "the whole model is loaded",
    "penalize_newline": "newlines are penalized like all other tokens",
    "tfs_z": "llama.cpp no longer has this sampler; min_p serves the same end",
    "draft_num_predict": "as many tokens are drafted as pay, by measured times, up to the setting engine.max_draft",
}
"""Known to Ollama, now or once, and without effect here: what is used instead."""

REFUSED: dict[str, str] = {
    "kv_type": "agents that share weights share one KV cache; set engine.kv_type in the settings",
    "kv_cells": "agents that share weights share one KV cache; set engine.kv_cells in the settings",
    "slots": "agents that share weights share the slots; set engine.slots in the settings",
    "n_ctx": "its name here is num_ctx",
    "context_window": "its name here is num_ctx",
    "n_gpu_layers": "its name here is num_gpu",
    "max_tokens": "its name here is num_predict",
    "max_completion_tokens": "its name here is num_predict",
    "top_n": "its name here is top_k",
    "repetition_penalty": "its name here is repeat_penalty",
}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Parameters:
    """Collects the PARAMETER lines of one file."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._seen: dict[str, Instruction] = {}
        self.fields: dict[str, Any] = {}
        """Fields of `Modelfile`; those set to their default too."""
        self.sampling: dict[str, Any] = {}
        self.stop: list[str] = []
        self.warnings: list[str] = []
        self._special: dict[str, Callable[[Instruction], None]] = {
            "num_ctx": self._num_ctx,
            "num_gpu": self._num_gpu,
            "num_predict": self._num_predict,
            "stop": self._stop,
            "timeout": self._timeout,
            "keep_alive": self._keep_alive,
            "overflow": self._overflow,
            "pin": self._pin,
            "adapter_scale": self._adapter_scale,
        }

    def take(self, line: Instruction) -> None:
        """Read one line. Raises `ConfigError` with the place."""
        name = line.key.lower()
        if name in REFUSED:
            raise self._source.fail(line.key_offset, f"PARAMETER {name}: {REFUSED[name]}.")
        if not (name in self._special or name in SAMPLING or name in INSTEAD):
            known = [*self._special, *SAMPLING, *INSTEAD]
            message = f"there is no parameter {line.key!r}{nearest(name, known) or '.'}"
            raise self._source.fail(line.key_offset, message)
        if name in self._seen and name != "stop":
            earlier = self._source.place(self._seen[name].offset)
            self._warn(line, f"PARAMETER {name} replaces the one at {earlier}.")
        self._seen[name] = line
        if name in INSTEAD:
            self._warn(line, f"PARAMETER {name} has no effect: {INSTEAD[name]}.")
        elif name in SAMPLING:
            self._sampling(name, line)
        else:
            self._special[name](line)

    def _warn(self, line: Instruction, message: str) -> None:
        self.warnings.append(f"{self._source.place(line.offset)}: {message}")

    def _sampling(self, name: str, line: Instruction) -> None:
        value = self._number(line, SAMPLING[name])
        if name == "seed":
            self.sampling[name] = None if value == -1 else int(value) % 2**32
        else:
            self.sampling[name] = max(0, value) if name == "top_k" else value

    def _num_ctx(self, line: Instruction) -> None:
        self.fields["n_ctx"] = self._number(line, _Number(int, 16, _MOST))

    def _num_predict(self, line: Instruction) -> None:
        count = int(self._number(line, _Number(int, -2, _MOST)))
        if count == 0:
            raise self._source.fail(
                line.value_offset, "num_predict must be at least 1, or -1 for the server's default."
            )
        self.fields["max_tokens"] = count if count > 0 else None
        if count < 0:
            self._warn(
                line,
                f"num_predict {count}: an answer has a limit here all the same, the setting "
                "engine.default_max_tokens or what is left of num_ctx. Name a number for another.",
            )

    def _num_gpu(self, line: Instruction) -> None:
        text = line.value.lower()
        if text in ("all", "auto"):
            self.fields["n_gpu_layers"] = "all" if text == "all" else None
            return
        layers = int(self._number(line, _Number(int, -1, _MOST), also="or `all`, or `auto`"))
        self.fields["n_gpu_layers"] = None if layers < 0 else layers
        if layers == 1:
            self._warn(
                line,
                "num_gpu counts layers, not cards: 1 puts one layer on the GPU and leaves all others to "
                "the CPU. For as many as fit write `num_gpu auto` or drop the line; for all: `num_gpu all`.",
            )

    def _stop(self, line: Instruction) -> None:
        if not line.value:
            raise self._source.fail(line.value_offset, "a stop text must not be empty.")
        if re.search(r"\\[nrt\\\"]", line.value):
            self._warn(
                line,
                f"a Modelfile knows no escapes: this stops at the characters {line.value!r}. "
                'For a line break put the text between """ and """ over two lines.',
            )
        if re.fullmatch(r"'.+'|\[.*\"\s*\]", line.value) and not line.quoted:
            self._warn(
                line,
                f"this stops at the characters {line.value}, brackets and quotation marks included. Write "
                'one PARAMETER stop for each text, in no quotation marks or in ".',
            )
        if line.value in self.stop:
            self._warn(line, "this stop text was given already.")
            return
        if len(self.stop) == MOST_STOPS:
            raise self._source.fail(line.offset, f"there may be at most {MOST_STOPS} stop texts.")
        self.stop.append(line.value)

    def _timeout(self, line: Instruction) -> None:
        seconds = self._duration(line, "such as 120s or 5m (a plain number is seconds)")
        if seconds == 0:
            raise self._source.fail(line.value_offset, "timeout must be longer than 0.")
        self.fields["timeout"] = seconds

    def _keep_alive(self, line: Instruction) -> None:
        form = "such as 5m, 0 (unload at once) or -1 (never unload); a plain number is seconds"
        if line.value.startswith("-"):
            self._duration(line, form, text=line.value[1:])
            self.fields["keep_alive"] = FOREVER
        else:
            self.fields["keep_alive"] = self._duration(line, form)

    def _overflow(self, line: Instruction) -> None:
        choice = line.value.lower()
        if choice not in ("refuse", "drop_oldest"):
            message = f"overflow must be refuse or drop_oldest, not {line.value!r}."
            raise self._source.fail(line.value_offset, message)
        self.fields["overflow"] = choice

    def _pin(self, line: Instruction) -> None:
        choice = line.value.lower()
        if choice not in ("true", "false"):
            message = f"pin must be true or false, not {line.value!r}."
            raise self._source.fail(line.value_offset, message)
        self.fields["pin"] = choice == "true"

    def _adapter_scale(self, line: Instruction) -> None:
        self.fields["adapter_scale"] = self._number(line, _Number(float, -100, 100))

    def _duration(self, line: Instruction, form: str, *, text: str | None = None) -> float:
        match = _DURATION.fullmatch((line.value if text is None else text).strip().lower())
        if match is None:
            message = f"{line.key} must be a duration {form}, not {self._shown(line)}."
            raise self._source.fail(line.value_offset, message)
        return float(match[1]) * _SECONDS[match[2] or "s"]

    def _number(self, line: Instruction, wanted: _Number, *, also: str = "") -> float:
        kind = "a whole number" if wanted.kind is int else "a number"
        low = "above" if wanted.open_low else "from"
        form = f"{kind} {low} {wanted.low:g} to {wanted.high:g}"
        if wanted.high >= _MOST:
            form = (
                f"{kind}, at least {wanted.low:g}"
                if wanted.low > -(2**62)
                else f"{kind} of 64 bits"
            )
        try:
            value = wanted.kind(line.value.replace("_", " "))  # Python reads 1_000, Go does not
        except ValueError:
            value = math.nan
        below = value <= wanted.low if wanted.open_low else value < wanted.low
        if math.isnan(value) or below or value > wanted.high:
            message = f"{line.key} must be {form}{also and ', '}{also}, not {self._shown(line)}."
            raise self._source.fail(line.value_offset, message)
        return value

    def _shown(self, line: Instruction) -> str:
        hint = " (a comment must be on a line of its own)" if " #" in line.value else ""
        return f"{line.value[:60]!r}{hint}"
