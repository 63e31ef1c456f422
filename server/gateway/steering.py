"""What an answer may consist of, from what is asked and from how its prompt ends: reasoning, calls, a form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from server.chat.json_schema import check_schema
from server.chat.reply import Tool, ToolForm
from server.chat.shape import ReplyShape
from server.chat.template import ChatTemplate
from server.core.errors import InvalidRequest
from server.core.request import Constraint, Thinking
from server.engine.grammar import CompiledGrammar, GrammarSource
from server.engine.interface import Tokenizer
from server.gateway.spec import ChatPrompt, GenerationSpec, OutputForm
from server.gateway.written import Written

_CLOSING = "\n</think>\n\n"
"""As Qwen3 ends its own blocks."""
_TAIL = 8
"""Last tokens of a prompt among which the marker is that the template may have left there."""
_EFFORT: Mapping[str, int | None] = {
    "none": 0,
    "minimal": 256,
    "low": 1024,
    "medium": 4096,
    "high": None,
    "xhigh": None,
    "max": None,
}
"""Tokens of reasoning that an effort allows, where the template does not know efforts; None: no limit."""


@dataclass(frozen=True, slots=True)
class Steering:
    """What the engine holds an answer to, and how it is taken apart."""

    thinking: Thinking | None = None
    constraint: Constraint | None = None
    shape: ReplyShape = field(default_factory=ReplyShape)


FREE = Steering()


def held(output: OutputForm, tokenizer: Tokenizer, written: Written) -> Steering:
    """Hold a whole answer to a form. For a worker thread: compiles it. Raises `InvalidRequest`."""
    return Steering(constraint=Constraint(tokenizer.grammars.compile(_source(output, written))))


def template_kwargs(
    given: ChatPrompt, template: ChatTemplate, *, strict: bool = False
) -> Mapping[str, Any]:
    """Return the template's variables, efforts in its own words. Raises `InvalidRequest`.

    That is for reasoning that the model lacks; with `strict`, also for what the template does not look at.
    """
    kwargs = dict(given.template_kwargs)
    thinking, effort = kwargs.get("enable_thinking"), kwargs.get("reasoning_effort")
    if not isinstance(thinking, bool | None):
        raise InvalidRequest(
            "'enable_thinking' must be true or false.", param="chat_template_kwargs.enable_thinking"
        )
    if thinking and not template.thinks:
        raise InvalidRequest(
            "This model does not reason: leave 'enable_thinking' out, or send false.",
            param="enable_thinking",
        )
    if "reasoning_effort" not in template.variables:
        if effort is not None and not (isinstance(effort, str) and effort in _EFFORT):
            raise InvalidRequest(
                f"'reasoning_effort' must be one of {', '.join(_EFFORT)}.",
                param="chat_template_kwargs.reasoning_effort",
            )
        kwargs.pop("reasoning_effort", None)
        if effort == "none" and "enable_thinking" in template.variables:
            kwargs.setdefault("enable_thinking", False)
    if strict:
        _refuse_unseen(given, template)
    return kwargs


def _refuse_unseen(given: ChatPrompt, template: ChatTemplate) -> None:
    """Raise `InvalidRequest` for what the request says to a template that does not look at it."""
    seen = template.variables | {"enable_thinking", "reasoning_effort"}
    for key in given.template_kwargs:
        if key not in seen:
            raise InvalidRequest(
                f"The model's chat template does not look at {key[:100]!r}; strict mode refuses it.",
                param=f"chat_template_kwargs.{key[:100]}",
            )
    if given.template_kwargs.get("reasoning_effort") not in (None, "none") and not (
        template.thinks or "reasoning_effort" in template.variables
    ):
        raise InvalidRequest(
            "This model does not reason; strict mode refuses 'reasoning_effort'.",
            param="reasoning_effort",
        )
    for number, message in enumerate(given.messages):
        # A tool's result names the tool that its call names already.
        if "name" in message and message["role"] != "tool" and not template.shows_names:
            raise InvalidRequest(
                "The model's chat template does not show the names of who speaks; strict mode refuses them.",
                param=f"messages[{number}].name",
            )


class Steerer:
    """Steers the answer to one chat. For a worker thread: grammars are compiled here."""

    def __init__(
        self,
        spec: GenerationSpec,
        given: ChatPrompt,
        offered: Sequence[Tool],
        template: ChatTemplate,
        tokenizer: Tokenizer,
        written: Written,
    ) -> None:
        """`given`: the prompt as the request has it; `offered`: the tools that the model is shown."""
        self._spec = spec
        self._prompt = given
        self._given = given.template_kwargs
        self._choice = spec.tool_choice
        self._offered = () if spec.tool_choice.mode == "none" else offered
        self._template = template
        self._tokenizer = tokenizer
        self._written = written
        self._form = self._tool_form()

    def kwargs(self) -> Mapping[str, Any]:
        """Return the template's variables. Raises as `template_kwargs`."""
        return template_kwargs(self._prompt, self._template, strict=self._spec.strict)

    def constraint(self) -> Constraint | None:
        """Compile what the answer is held to. Raises `InvalidRequest` for what cannot be enforced."""
        made = self._constraint()
        if made is not None and self._spec.ignore_eos and (made.trigger is None or made.once):
            raise InvalidRequest(
                "'ignore_eos' cannot be combined with a call that has to come, nor with "
                "'parallel_tool_calls': false: there the answer ends with the call.",
                param="ignore_eos",
            )
        return made

    def _constraint(self) -> Constraint | None:
        output, form = self._spec.output, self._form
        if output is None:
            return None if form is None else self._calls(form)
        return (
            held(output, self._tokenizer, self._written).constraint
            if form is None
            else self._calls_or(output, form)
        )

    def steer(self, tokens: Sequence[int], constraint: Constraint | None) -> Steering:
        """Return how the answer to the prompt `tokens` is steered."""
        thinking, where = self._thinking(tokens)
        shape = ReplyShape(where, self._form, self._offered if self._form else ())
        return Steering(thinking, constraint, shape)

    def _thinking(
        self, tokens: Sequence[int]
    ) -> tuple[Thinking | None, Literal["none", "possible", "inside"]]:
        """Return how reasoning is bounded, and whether the answer begins within it."""
        markers = self._tokenizer.marker_tokens
        start, end = markers.get("<think>"), markers.get("</think>")
        if not self._template.thinks:
            return None, "none"
        if start is None or end is None:
            if self._spec.thinking_budget is not None:
                raise InvalidRequest(
                    "This model's vocabulary has no tokens <think> and </think>: its reasoning cannot be bounded.",
                    param="thinking_token_budget",
                )
            return None, "possible"
        pieces = self._tokenizer.pieces
        last = next((token for token in reversed(tokens[-_TAIL:]) if pieces[token].strip()), None)
        if last == end:
            return None, "none"
        closing = tuple(self._tokenizer.encode(_CLOSING, parse_special=True))
        thinking = Thinking(start, end, last == start, self._budget(), closing)
        return thinking, "inside" if thinking.inside else "possible"

    def _budget(self) -> int | None:
        if self._spec.thinking_budget is not None:
            return self._spec.thinking_budget
        if self._given.get("enable_thinking") is False:
            return 0  # a template that knows the word has closed the block
        if "reasoning_effort" in self._template.variables:
            return None
        return _EFFORT.get(self._given.get("reasoning_effort", ""))

    def _tool_form(self) -> ToolForm | None:
        """Return how calls are written; None where there are none. Raises `InvalidRequest`."""
        if not self._offered:
            if self._choice.mode in ("required", "named"):
                message = "'tool_choice' asks for a call, but there are no tools."
                raise InvalidRequest(message, param="tool_choice")
            return None
        without = "Send none, or 'tool_choice': \"none\"."
        if not self._template.takes_tools:
            message = f"This model's chat template has no place for tools. {without}"
            raise InvalidRequest(message, param="tools")
        if self._template.form is None:
            message = f"This model writes calls in a form that is not known here. {without}"
            raise InvalidRequest(message, param="tools")
        return self._template.form

    def _calls(self, form: ToolForm) -> Constraint | None:
        """Hold calls to their tools: from the opening tag on, which is the beginning where one has to come."""
        choice = self._choice
        if choice.mode == "auto":
            trigger = self._tokenizer.marker_tokens.get(form.opening)
            if trigger is None:
                self._refuse_at_will(form)
                return None
            grammar = self._compiled(self._grammar(form, many=False))
            return Constraint(grammar, trigger, once=not choice.parallel)
        if choice.name is not None and choice.name not in _names(self._offered):
            message = f"There is no tool {choice.name!r}."
            raise InvalidRequest(message, param="tool_choice.function.name")
        many = choice.parallel and choice.mode == "required"
        return Constraint(self._compiled(self._grammar(form, many=many)))

    def _calls_or(self, output: OutputForm, form: ToolForm) -> Constraint:
        """Hold the answer to calls or to JSON of a form, from its first token on."""
        calls = self._grammar(form, many=self._choice.parallel)
        lines = ["start: calls | answer", calls.replace("start:", "calls:", 1)]
        schema = _schema(output, self._written)
        return Constraint(self._compiled("\n".join([*lines, f"answer: %json {schema}"])))

    def _grammar(self, form: ToolForm, *, many: bool) -> str:
        """Return the grammar of calls, arguments by their schemas where that is asked for or a call has to come."""
        only, bound = self._choice.name, self._choice.mode != "auto"

        def enforce(tool: Tool) -> bool:
            function = tool["function"]
            return only in (None, function["name"]) and (bound or bool(function.get("strict")))

        def write() -> str:
            special = {*self._tokenizer.control_tokens, *self._tokenizer.marker_tokens}
            offered = self._offered
            return form.grammar(offered, special=special, enforce=enforce, many=many, only=only)

        return self._written.text([form.name, list(self._offered), only, bound, many], write)

    def _compiled(self, grammar: str) -> CompiledGrammar:
        return self._tokenizer.grammars.compile(GrammarSource("lark", grammar, "tools"))

    def _refuse_at_will(self, form: ToolForm) -> None:
        """Raise `InvalidRequest` for what needs the opening tag to be a token, so that it can be waited for."""
        strict = [bool(tool["function"].get("strict")) for tool in self._offered]
        param = None if self._choice.parallel else "parallel_tool_calls"
        if True in strict:
            param = f"tools[{strict.index(True)}].function.strict"
        if param is not None:
            raise InvalidRequest(
                f"This model's vocabulary has no token {form.opening}, so this needs 'tool_choice': \"required\" "
                "or a tool's name.",
                param=param,
            )


def _names(tools: Sequence[Tool]) -> list[str]:
    return [tool["function"]["name"] for tool in tools]


def _schema(output: OutputForm, written: Written) -> str:
    """Return the JSON text of a schema that can be enforced. Raises `InvalidRequest`."""
    schema = {"type": "object"} if output.kind == "json_object" else output.value
    return written.text(schema, lambda: check_schema(schema, output.param))


def _source(output: OutputForm, written: Written) -> GrammarSource:
    match output.kind:
        case "json_object" | "json_schema":
            return GrammarSource("json_schema", _schema(output, written), output.param)
        case "choice":
            choices = " | ".join(json.dumps(text, ensure_ascii=False) for text in output.value)
            return GrammarSource("lark", f"start: {choices}", output.param)
        case kind:
            return GrammarSource(kind, output.value, output.param)
