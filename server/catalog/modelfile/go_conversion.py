"""A Go template of Ollama's as a Jinja chat template that writes the same prompt.

How Ollama calls its templates (template/template.go): messages of one role in a row are joined;
.System is all system messages. A template that reads .Messages is executed once. An older one, with
.System, .Prompt and .Response, is executed for each turn, and for the last one only up to the
answer. Jinja blocks here write no white space of their own: all text stands in literals.
"""

from __future__ import annotations

from server.catalog.modelfile.go_emitter import Emitter, Usage, usage
from server.catalog.modelfile.go_parser import parse
from server.catalog.modelfile.go_tree import Action, GoTemplateError, Node, Path, Pipe
from server.catalog.modelfile.go_values import Value, literal

_THINK = (
    "(enable_thinking if enable_thinking is defined "
    "else reasoning_effort|default('', true) not in ('', 'none'))"
)
_REQUEST = {
    "Suffix": Value("''", "string"),
    "Think": Value(_THINK, "bool"),
    "ThinkLevel": Value("(reasoning_effort|default('', true))", "string"),
    "IsThinkSet": Value("(enable_thinking is defined or reasoning_effort is defined)", "bool"),
}
_WHOLE = {
    "Messages": Value("go.messages", "messages"),
    "System": Value("go.system", "string"),
    "Tools": Value("go.tools", "tools"),
    # Ollama gives these to the older form only; here they are empty there too.
    "Prompt": Value("''", "string"),
    "Response": Value("''", "string"),
} | _REQUEST
_TURNS = {
    "System": Value("system", "string"),
    "Prompt": Value("prompt", "string"),
    "Response": Value("response", "string"),
    "Tools": Value("[]", "tools"),
} | _REQUEST

_COLLATED = """\
{%- set go = namespace(messages=[], systems=[], names={}, tools=tools or []) -%}
{%- for message in messages -%}
{%- set content = message['content'] or '' -%}
{%- set calls = message['tool_calls'] or [] -%}
{%- set last = go.messages[-1] if go.messages else {} -%}
{%- if message['role'] == 'system' -%}{%- set go.systems = go.systems + [content] -%}{%- endif -%}
{%- for call in calls if call['id'] -%}
{%- set go.names = dict(go.names, **{call['id']: call['function']['name']}) -%}
{%- endfor -%}
{%- if message['role'] == last['role'] != 'tool' and not (calls or last['calls']) -%}
{%- set joined = last['content'] ~ '\\n\\n' ~ content -%}
{%- set go.messages = go.messages[:-1] + [dict(last, content=joined)] -%}
{%- else -%}
{%- set go.messages = go.messages + [{
    'role': message['role'],
    'content': content,
    'thinking': message['reasoning_content'] or message['reasoning'] or '',
    'calls': calls,
    'call_id': message['tool_call_id'] or '',
    'name': message['name'] or go.names[message['tool_call_id']] or '',
}] -%}
{%- endif -%}
{%- endfor -%}
{%- set go.system = go.systems|join('\\n\\n') -%}
"""
_TURN_BY_TURN = """\
{%- set turn = namespace(system='', prompt='', response='') -%}
{%- for message in go.messages -%}
{%- set role = message['role'] -%}
{%- if (role == 'system' and (turn.prompt or turn.response)) or (role == 'user' and turn.response) -%}
{{- whole_turn(turn.system, turn.prompt, turn.response) -}}
{%- set turn.system = '' -%}
{%- set turn.prompt = '' -%}
{%- set turn.response = '' -%}
{%- endif -%}
{%- if role == 'system' -%}{%- set turn.system = message['content'] -%}
{%- elif role == 'user' -%}{%- set turn.prompt = message['content'] -%}
{%- else -%}{%- set turn.response = message['content'] -%}{%- endif -%}
{%- endfor -%}
{{- last_turn(turn.system, turn.prompt, turn.response) -}}
"""


def convert(source: str) -> str:
    """Return Jinja source. Raises `GoTemplateError` for all that is not fully understood."""
    nodes = parse(source)
    used = usage(nodes)
    if "Messages" in used.names:
        emitter = Emitter(_WHOLE)
        emitter.body(nodes)
        lines = emitter.lines
    elif "Prompt" in used.names:
        lines = _turn_by_turn(nodes, used)
    else:
        message = (
            "the template writes neither .Messages nor .Prompt, so the model would see no question."
        )
        raise GoTemplateError(0, message)
    return _COLLATED + _refusals(used) + _with_bos(lines)


def _turn_by_turn(nodes: tuple[Node, ...], used: Usage) -> list[str]:
    if "Response" not in used.names:
        # Ollama appends the answer to a template that does not say where it goes.
        nodes = (*nodes, Action(Pipe(0, (), False, Path(0, "$", ("Response",)))))
    lines: list[str] = []
    for name, cut in (("whole_turn", False), ("last_turn", True)):
        emitter = Emitter(_TURNS, cut=cut)
        emitter.body(nodes)
        lines.append(f"{{%- macro {name}(system, prompt, response) -%}}")
        lines.append("{%- set go = namespace() -%}")
        lines += [*emitter.lines, "{%- endmacro -%}"]
    return [*lines, _TURN_BY_TURN.rstrip("\n")]


def _refusals(used: Usage) -> str:
    """Refuse at run time what the template would leave out without a word."""
    turns = "Messages" not in used.names
    roles = ["user", "assistant"]
    if "System" in used.names or (not turns and (used.writes_role or "system" in used.strings)):
        roles.append("system")
    if not turns and "tool" in used.strings:
        roles.append("tool")
    lines = ["{%- for message in go.messages -%}"]
    if turns or not used.writes_role:
        message = "the agent\\'s TEMPLATE has no place for messages of the role "
        known = ", ".join(f"'{role}'" for role in roles)
        lines.append(f"{{%- if message['role'] not in ({known}) -%}}")
        lines.append(f"{{{{- raise_exception('{message}' ~ message['role']) -}}}}{{%- endif -%}}")
    if "ToolCalls" not in used.names:
        message = "the agent\\'s TEMPLATE has no place for tool calls (.ToolCalls)"
        lines.append(f"{{%- if message['calls'] -%}}{{{{- raise_exception('{message}') -}}}}")
        lines.append("{%- endif -%}")
    lines.append("{%- endfor -%}")
    if "Tools" not in used.names or turns:
        message = "the agent\\'s TEMPLATE cannot show tools to the model (.Tools)"
        lines.append(
            f"{{%- if go.tools -%}}{{{{- raise_exception('{message}') -}}}}{{%- endif -%}}"
        )
    return "\n".join(lines) + "\n"


def _with_bos(lines: list[str]) -> str:
    """Begin with the BOS token where the vocabulary asks for it, as Ollama's tokenizing does."""
    check = "add_bos_token is defined and add_bos_token and not written.startswith(bos_token)"
    return "\n".join(
        [
            "{%- set written -%}",
            *lines,
            "{%- endset -%}",
            f"{{{{- (bos_token if {check} else {literal('')}) ~ written -}}}}",
        ]
    )
