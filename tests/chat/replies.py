"""Runs parsers over texts in pieces, and puts together what they say."""

from collections.abc import Iterable

from server.chat.reply import CallArguments, CallOpened, Content, Part, Reasoning
from server.chat.shape import ReplyShape


def parse(shape: ReplyShape, pieces: Iterable[str]) -> list[Part]:
    """Return the parts of an answer, neighbours of one kind as one."""
    parser = shape.parser()
    parts: list[Part] = []
    for piece in pieces:
        parts += parser.push(piece)
    return merged([*parts, *parser.close()])


def merged(parts: Iterable[Part]) -> list[Part]:
    result: list[Part] = []
    for part in parts:
        assert isinstance(part, CallOpened) or part.text != ""
        last = result[-1] if result else None
        match last, part:
            case Content(before), Content(text):
                result[-1] = Content(before + text)
            case Reasoning(before), Reasoning(text):
                result[-1] = Reasoning(before + text)
            case CallArguments(call, before), CallArguments(index, text):
                assert call == index
                result[-1] = CallArguments(index, before + text)
            case _:
                result.append(part)
    return result


def content(parts: Iterable[Part]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Content))


def calls(parts: Iterable[Part]) -> list[tuple[str, str]]:
    """Names and arguments, in order; holds the indices to it."""
    found: list[tuple[str, str]] = []
    for part in parts:
        if isinstance(part, CallOpened):
            assert part.index == len(found)
            found.append((part.name, ""))
        elif isinstance(part, CallArguments):
            assert part.index == len(found) - 1
            found[-1] = (found[-1][0], found[-1][1] + part.text)
    return found


def tool(name: str, properties: dict | None = None, **schema) -> dict:
    """A tool; without properties its parameters are not described."""
    function: dict = {"name": name}
    if properties is not None:
        function["parameters"] = {"type": "object", "properties": properties, **schema}
    return {"type": "function", "function": function}
