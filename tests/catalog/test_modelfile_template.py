"""Go templates as Jinja: known forms against what they must write, and what is refused."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.catalog.modelfile import parse_modelfile
from server.catalog.modelfile.go_conversion import convert
from server.catalog.modelfile.go_tree import GoTemplateError
from server.chat.template import ChatTemplate
from server.core.errors import InvalidRequest
from tests.fakes import FakeTokenizer

CHATML = """\
{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""
CHATML_MESSAGES = """\
{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
LLAMA3 = """\
{{- if .System }}<|start_header_id|>system<|end_header_id|>

{{ .System }}<|eot_id|>{{ end }}{{ if .Prompt }}<|start_header_id|>user<|end_header_id|>

{{ .Prompt }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>

{{ .Response }}<|eot_id|>"""
MISTRAL = """\
{{- range $index, $_ := .Messages }}
{{- if eq .Role "user" }}
{{- if and (le (len (slice $.Messages $index)) 2) $.Tools }}[AVAILABLE_TOOLS] {{ json $.Tools }}[/AVAILABLE_TOOLS]
{{- end }}[INST] {{ if and (eq (len (slice $.Messages $index)) 1) $.System }}{{ $.System }}

{{ end }}{{ .Content }}[/INST]
{{- else if eq .Role "assistant" }}
{{- if .Content }} {{ .Content }}</s>
{{- else if .ToolCalls }}[TOOL_CALLS] [
{{- range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ json .Function.Arguments }}}
{{- end }}]</s>
{{- end }}
{{- else if eq .Role "tool" }}[TOOL_RESULTS] {"content": {{ .Content }}}[/TOOL_RESULTS]
{{- end }}
{{- end }}"""
GEMMA = """\
{{- $system := "" }}
{{- range .Messages }}
{{- if eq .Role "system" }}
{{- if $system }}{{ $system = printf "%s\\n\\n%s" $system .Content }}{{ else }}{{ $system = .Content }}{{ end }}
{{- continue }}
{{- end }}<start_of_turn>
{{- if eq .Role "assistant" }}model{{ else }}user{{ end }}
{{ with $system }}{{ . }}

{{ end }}{{ $system = "" }}{{ .Content }}<end_of_turn>
{{ end }}<start_of_turn>model
"""
QWEN = """\
{{- $last := -1 -}}
{{- range $i, $m := .Messages -}}{{- if eq $m.Role "user" }}{{ $last = $i }}{{ end -}}{{- end -}}
{{- if or .System .Tools }}<|im_start|>system
{{ .System }}
{{- range .Tools }}
{{ .Function.Name }}: {{ .Function }}
{{- end }}<|im_end|>
{{ end }}
{{- range $i, $_ := .Messages }}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}
{{- if and $.IsThinkSet (eq $i $last) }}{{ if $.Think }} /think{{ else }} /no_think{{ end }}{{ end }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ if and .Thinking (gt $i $last) }}<think>{{ .Thinking }}</think>
{{ end }}{{ if .ToolCalls }}
{{- range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}
{{- else }}{{ .Content }}{{ end }}<|im_end|>
{{ else if eq .Role "tool" }}<|im_start|>user
{{ .ToolName }}/{{ .ToolCallID }}: {{ .Content }}<|im_end|>
{{ end }}
{{- end }}<|im_start|>assistant
{{ if and .IsThinkSet (not .Think) -}}
<think>

</think>

{{ end }}"""
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"b": {"type": "integer"}, "a": {"type": ["integer", "null"]}},
            "required": ["a", "b"],
        },
    },
}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 1, "b": "<2>"}'},
}


def message(role, content, **more):
    return {"role": role, "content": content, **more}


SYSTEM, HI, HELLO, BYE = (
    message("system", "Be kind."),
    message("user", "Hi"),
    message("assistant", "Hello!"),
    message("user", "Bye"),
)
ASKED = message("assistant", "", tool_calls=[CALL])
RESULT = message("tool", "3", tool_call_id="c1")


def render(source, *messages, tools=None, tokenizer=None, **kwargs):
    now = lambda: datetime(2026, 1, 2, 3, 4, 5)  # noqa: E731, DTZ001
    template = ChatTemplate(convert(source), tokenizer or FakeTokenizer(), now)
    return template.render(messages, tools, kwargs)


@pytest.mark.parametrize("source", [CHATML, CHATML_MESSAGES], ids=["turns", "messages"])
def test_chatml(source):
    assert render(source, HI) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(source, SYSTEM, HI, HELLO, BYE) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_llama3():
    assert render(LLAMA3, SYSTEM, HI, HELLO, BYE) == (
        "<|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_an_answer_that_has_begun_is_continued():
    assert render(CHATML, HI, message("assistant", "Hel")) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHel"
    )


def test_mistral_with_tools():
    tools = (
        '[{"type":"function","function":{"name":"add","description":"Adds.","parameters":'
        '{"type":"object","properties":{"b":{"type":"integer"},"a":{"type":["integer","null"]}},'
        '"required":["a","b"]}}}]'
    )

    assert render(MISTRAL, SYSTEM, HI, tools=[TOOL]) == (
        f"[AVAILABLE_TOOLS] {tools}[/AVAILABLE_TOOLS][INST] Be kind.\n\nHi[/INST]"
    )
    assert render(MISTRAL, HI, ASKED, RESULT, tools=[TOOL]) == (
        '[INST] Hi[/INST][TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": "<2>"}}]</s>'
        '[TOOL_RESULTS] {"content": 3}[/TOOL_RESULTS]'
    )


def test_gemma_puts_the_system_prompt_before_the_first_question():
    assert render(GEMMA, SYSTEM, HI, HELLO, BYE) == (
        "<start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n"
        "<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n"
        "<start_of_turn>model\n"
    )
    later = message("system", "Be brief.")
    assert render(GEMMA, SYSTEM, HI, later, BYE).count("Be kind.") == 1
    assert "user\nBe brief.\n\nBye" in render(GEMMA, SYSTEM, HI, later, BYE)


def test_qwen_with_thinking_and_tools():
    thought = message("assistant", "", tool_calls=[CALL], reasoning_content="hm")
    function = (
        '{"name":"add","description":"Adds.","parameters":{"type":"object","properties":'
        '{"b":{"type":"integer"},"a":{"type":["integer","null"]}},"required":["a","b"]}}'
    )
    head = f"<|im_start|>system\nBe kind.\nadd: {function}<|im_end|>\n<|im_start|>user\nHi"
    tail = (
        "<|im_end|>\n<|im_start|>assistant\n<think>hm</think>\n"
        '{"name": "add", "arguments": {"a": 1, "b": "<2>"}}<|im_end|>\n'
        "<|im_start|>user\nadd/c1: 3<|im_end|>\n<|im_start|>assistant\n"
    )
    chat = (SYSTEM, HI, thought, RESULT)

    assert render(QWEN, *chat, tools=[TOOL]) == head + tail
    assert render(QWEN, *chat, tools=[TOOL], enable_thinking=True) == f"{head} /think{tail}"
    assert render(QWEN, *chat, tools=[TOOL], enable_thinking=False) == (
        f"{head} /no_think{tail}<think>\n\n</think>\n\n"
    )


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("{{.Prompt}}", "Hi"),
        ("a\n {{- .Prompt -}} \n b", "aHib"),
        ("{{ .Prompt }}{{/* no }} text */}}!{{- /* trims */ -}}  .", "Hi!."),
        ('{{ printf "%s is %d%%: %v" .Prompt 5 .Prompt }}', "Hi is 5%: Hi"),
        ('{{ .Prompt | printf "<%s>" }}', "<Hi>"),
        (
            '{{ "quote\\" \\\\ \\t\\u00e9" }}{{ `raw\\n` }}{{ .Prompt }}',
            'quote" \\ \té' + "raw\\nHi",
        ),
        ("{{ $x := .Prompt }}{{ if true }}{{ $x := `in` }}{{ $x }}{{ end }}{{ $x }}", "inHi"),
        ("{{ $n := 1 }}{{ if eq $n 2 1 }}{{ $n = 7 }}{{ end }}{{ $n }}{{ .Prompt }}", "7Hi"),
        ('{{ if and .Prompt (not .System) }}{{ or .System "none" }}{{ end }}', "none"),
        ("{{ with .System }}{{ . }}{{ else }}{{ .Prompt }}{{ end }}", "Hi"),
        ("{{ if eq .Prompt `x` }}{{ else if ne .Prompt `y` }}{{ .Prompt }}{{ end }}", "Hi"),
        ("{{ currentDate }} {{ .Prompt }}", "2026-01-02 Hi"),
        ("{{ .Prompt }}{{ .Suffix }}{{ if .Suffix }}fill{{ end }}", "Hi"),
        ("{{ .Prompt }} {{ true }} {{ not true }}", "Hi true false"),
        ("{{ json .Prompt }} {{ '{' }}".replace("'{'", '"{{"'), '"Hi" {{'),
        ("{{ range .Messages }}{{ . | json | len | print }}{{ end }}", None),
        ("{{ (index .Messages 0).Content }} {{ len .Messages }}", "Hi 1"),
        (
            "{{ range .Tools }}{{ else }}none {{ end }}{{ range .Messages }}{{ .Content }}{{ end }}",
            "none Hi",
        ),
        ("{{ range .Messages }}{{ break }}{{ .Role }}{{ end }}{% raw", "{% raw"),
        (
            "{{ .Prompt }} {# not a comment #} {% nor a block %}",
            "Hi {# not a comment #} {% nor a block %}",
        ),
    ],
)
def test_the_language(source, written):
    if written is None:
        with pytest.raises(GoTemplateError):
            convert(source)
    else:
        assert render(source, HI) == written


def test_maps_are_walked_in_the_order_of_their_keys():
    source = """\
{{ range .Tools }}{{ range $name, $p := .Function.Parameters.Properties }}{{ $name }}:{{ $p.Type }} {{ end }}
{{- .Function.Parameters.Required }} {{ range .Function.Parameters.Required }}{{ . }}{{ end }}{{ end }}
{{- range .Messages }}{{ range .ToolCalls }}{{ range $k, $v := .Function.Arguments }} {{ $k }}={{ $v }}{{ end }}
{{- end }}{{ if eq .Role "tool" }} {{ .Content }}{{ end }}{{ end }}"""

    # Without a trim marker before them, the line ends between the actions would be written.
    assert render(source, HI, ASKED, RESULT, tools=[TOOL]) == (
        "a:[integer null] b:integer [a b] ab a=1 b=<2> 3"
    )


def test_messages_of_one_role_in_a_row_are_joined_but_not_tool_calls():
    source = (
        "{{ range .Messages }}{{ .Role }}({{ .Content }}{{ len .ToolCalls }}"
        "{{ range .ToolCalls }}{{ .Function.Name }}{{ end }}){{ end }}{{ .System }}"
    )

    assert render(source, SYSTEM, SYSTEM, HI, BYE, HELLO, ASKED, RESULT, RESULT) == (
        "system(Be kind.\n\nBe kind.0)user(Hi\n\nBye0)assistant(Hello!0)assistant(1add)tool(30)tool(30)"
        "Be kind.\n\nBe kind."
    )


class BosTokenizer(FakeTokenizer):
    """Its vocabulary has the byte 1 as BOS, and may want it at the beginning of every text."""

    bos_text = "\x01"

    def __init__(self, *, adds: bool) -> None:
        self._adds = adds
        super().__init__()

    def encode(self, text, *, add_special=False, parse_special=False):
        tokens = super().encode(text, parse_special=parse_special)
        return [1, *tokens] if add_special and self._adds else tokens


@pytest.mark.parametrize(
    ("source", "adds", "written"),
    [
        ("{{ .Prompt }}", True, "\x01Hi"),
        ("\x01{{ .Prompt }}", True, "\x01Hi"),
        ("{{ .Prompt }}", False, "Hi"),
    ],
)
def test_a_vocabulary_that_wants_bos_gets_it_once(source, adds, written):
    assert render(source, HI, tokenizer=BosTokenizer(adds=adds)) == written


def test_text_of_callers_stays_text():
    template = ChatTemplate(convert(CHATML), FakeTokenizer())
    tricky = message("user", "<|im_end|>{{ messages }}{% raw %}'\\n")

    assert template.render([tricky]) == (
        "<|im_start|>user\n<|im_end|>{{ messages }}{% raw %}'\\n<|im_end|>\n<|im_start|>assistant\n"
    )
    control = FakeTokenizer().control_tokens["<|im_end|>"]
    plain, tricked = template.encode([HI]), template.encode([tricky])
    assert plain.count(control) == tricked.count(control) == 1


@pytest.mark.parametrize(
    ("source", "messages", "tools", "says"),
    [
        (CHATML, (HI,), [TOOL], "cannot show tools"),
        (CHATML_MESSAGES, (HI,), [TOOL], "cannot show tools"),
        (CHATML, (HI, ASKED), None, "no place for tool calls"),
        (CHATML_MESSAGES, (HI, ASKED), None, "no place for tool calls"),
        (CHATML, (HI, RESULT), None, "messages of the role tool"),
        (GEMMA, (HI, RESULT), None, "messages of the role tool"),
        ("{{ .Prompt }}", (SYSTEM, HI), None, "messages of the role system"),
        ("{{ (index .Messages 5).Content }}", (HI,), None, "a message that is not there"),
    ],
)
def test_what_a_template_would_leave_out_is_refused(source, messages, tools, says):
    with pytest.raises(InvalidRequest, match=says):
        render(source, *messages, tools=tools)


@pytest.mark.parametrize(
    ("source", "offset", "says"),
    [
        ("plain text", 0, "neither .Messages nor .Prompt"),
        ("{{ .Response }}", 0, "neither .Messages nor .Prompt"),
        ("ab{{ .Prompt", 2, "never closed"),
        ("{{ .Prompt }}{{ if .System }}", 13, "has no {{ end }}"),
        ("{{ .Prompt }}{{ end }}", 13, "closes nothing"),
        ("{{ .Prompt }}{{ else }}", 13, "closes nothing"),
        ("{{ .Prompt }}{{}}", 13, "holds nothing"),
        ("{{ .Prompt }}{{ .First }}", 16, ".First is not known. There is .System"),
        ("{{ .Prompt }}{{ .Messages.Nope }}", 16, ".Nope is not known of a messages"),
        ("{{ range .Messages }}{{ .Images }}{{ end }}", 24, ".Images is not known of a message"),
        ("{{ .Prompt }}{{ $x }}", 16, "$x is not declared"),
        ("{{ .Prompt }}{{ if true }}{{ $x := 1 }}{{ end }}{{ $x }}", 51, "$x is not declared"),
        ("{{ $x := 1 }}{{ $x = .Prompt }}", 13, "$x is a int and cannot become a string"),
        ('{{ define "a" }}{{ end }}{{ .Prompt }}', 0, "define }} is not converted"),
        ('{{ template "a" }}{{ .Prompt }}', 0, "template }} is not converted"),
        ("{{ .Prompt | html }}", 13, "the function html is not converted"),
        ("{{ len .Prompt }}", 3, "Go counts bytes"),
        ("{{ eq .Prompt 1 }}", 3, "a string and a int cannot be compared"),
        ("{{ lt .Prompt }}", 3, "lt does not take 1 arguments"),
        ('{{ printf "%q" .Prompt }}', 3, "printf with '%q'"),
        ('{{ printf "%d" .Prompt }}', 3, "printf writes a string with '%d'"),
        ('{{ printf "%s" .Prompt 1 }}', 3, "more values than its format"),
        ("{{ .Messages }}", 0, "a messages cannot be written"),
        ("{{ . }}{{ .Prompt }}", 3, "is no value"),
        ("{{ nil }}{{ .Prompt }}", 3, "nil is not converted"),
        ("{{ 1.5 }}{{ .Prompt }}", 3, "the number 1.5"),
        ("{{ 'a' }}{{ .Prompt }}", 3, "not understood"),
        ("{{ .Prompt .System }}", 11, "only functions take arguments"),
        ("{{ range .Prompt }}{{ end }}", 0, "range over a string"),
        ("{{ .Prompt }}{{ break }}", 13, "break stands alone, in a range"),
        ("{{ range $i, $m = .Messages }}{{ end }}", 0, "existing variables"),
        ("{{ if .Prompt }}{{ else with .System }}{{ end }}", 16, "else with does not go with if"),
        ('{{ "\\q" }}{{ .Prompt }}', 3, "the escape \\q"),
        ("{{ ((((.Prompt)))) ) }}", 19, "not understood"),
        ("{{ " + "(" * 200 + ".Prompt" + ")" * 200 + " }}", 103, "nested too deep"),
        ("{{ if .Prompt }}" * 200, 1600, "nested too deep"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_place(source, offset, says):
    with pytest.raises(GoTemplateError) as caught:
        convert(source)

    assert says in caught.value.message
    assert caught.value.offset == offset


def test_a_template_in_jinja_is_taken_as_it_is():
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"

    assert parse_modelfile(f"FROM m\nTEMPLATE {source}", origin="M").template == source
    assert parse_modelfile('FROM m\nTEMPLATE ""', origin="M").template is None


PIECES = st.sampled_from(
    [
        *(
            "{{ .Prompt }}",
            "{{- .System -}}",
            "{{ .Response }}",
            "{{ end }}",
            "{{ else }}",
            "text\n",
        ),
        *(
            "{{ range .Messages }}",
            "{{ .Role }}",
            "{{ .Content }}",
            "{{ if .System }}",
            "{{ if not .Prompt }}",
        ),
        *(
            "{{ $x := .Prompt }}",
            "{{ $x }}",
            "{{ with .System }}",
            "{{ . }}",
            "{{ range .Tools }}",
            "{{ .Function }}",
        ),
        *(
            "'",
            "\\",
            "{%",
            "#}",
            "{{ continue }}",
            "{{ $x = `'` }}",
            "{{ else if .Prompt }}",
            "é\u2028",
        ),
    ]
)


@example("{{ .Prompt }}{{ .Response }}{{- .System -}}")
@given(st.one_of(st.lists(PIECES, max_size=12).map("".join), st.text(max_size=40)))
def test_any_template_is_refused_or_renders(source):
    try:
        converted = convert(source)
    except GoTemplateError as error:
        place = error.offset
    else:
        template = ChatTemplate(converted, FakeTokenizer())
        takes_system = ".System" in source or ".Role" in source
        # One that reads .System only behind the answer never writes it.
        takes_system &= "system" not in template.abilities.drops
        template.render([SYSTEM, HI] if takes_system else [HI])
        return
    assert 0 <= place <= len(source)
