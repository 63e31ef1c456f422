"""From a Go template's text to its tree."""

from __future__ import annotations

from server.catalog.modelfile.go_pieces import Tag, Token, pieces
from server.catalog.modelfile.go_pipeline import Pipeline
from server.catalog.modelfile.go_tree import (
    DEEPEST,
    Action,
    Block,
    GoTemplateError,
    Jump,
    Node,
    Text,
)


def parse(source: str) -> tuple[Node, ...]:
    """Return the tree of a template. Raises `GoTemplateError`."""
    return _Parser(pieces(source)).template()


class _Parser:
    """Recursive descent over the pieces."""

    def __init__(self, pieces: list[Text | Tag]) -> None:
        self._pieces = pieces
        self._next = 0
        self._depth = 0
        self._loops = 0

    def template(self) -> tuple[Node, ...]:
        nodes, end = self._nodes()
        if end is not None:
            raise GoTemplateError(end.offset, f"{{{{ {end.tokens[0].text} }}}} closes nothing.")
        return nodes

    def _nodes(self) -> tuple[tuple[Node, ...], Tag | None]:
        """Read up to `end`, `else` or the end of the template; return what stopped it."""
        nodes: list[Node] = []
        while self._next < len(self._pieces):
            piece = self._pieces[self._next]
            self._next += 1
            if isinstance(piece, Text):
                nodes.append(piece)
                continue
            if not piece.tokens:
                raise GoTemplateError(piece.offset, "{{ }} holds nothing.")
            keyword = piece.tokens[0].text if piece.tokens[0].kind == "word" else ""
            if keyword in ("end", "else"):
                return tuple(nodes), piece
            nodes.append(self._statement(piece, keyword))
        return tuple(nodes), None

    def _statement(self, tag: Tag, keyword: str) -> Node:
        match keyword:
            case "if" | "range" | "with":
                return self._block(tag, tag.tokens)
            case "break" | "continue":
                if not self._loops or len(tag.tokens) > 1:
                    raise GoTemplateError(tag.offset, f"{keyword} stands alone, in a range.")
                return Jump(tag.offset, keyword)
            case "define" | "template" | "block":
                raise GoTemplateError(tag.offset, f"{{{{ {keyword} }}}} is not converted.")
        return Action(Pipeline(tag.tokens, tag.offset).pipe())

    def _block(self, tag: Tag, tokens: tuple[Token, ...]) -> Block:
        """Read a block whose keyword is the first of `tokens`."""
        keyword = tokens[0].text
        self._depth += 1
        if self._depth > DEEPEST:
            raise GoTemplateError(tag.offset, "blocks are nested too deep.")
        pipe = Pipeline(tokens[1:], tag.offset).pipe(several=keyword == "range")
        self._loops += keyword == "range"
        body, end = self._nodes()
        self._loops -= keyword == "range"
        orelse: tuple[Node, ...] = ()
        if end is not None and end.tokens[0].text == "else":
            rest = end.tokens[1:]
            if rest and rest[0].text == keyword and keyword in ("if", "with"):
                orelse, end = (self._block(end, rest),), None
                self._depth -= 1
                return Block(keyword, pipe, body, orelse)
            if rest:
                raise GoTemplateError(
                    end.offset, f"else {rest[0].text} does not go with {keyword}."
                )
            orelse, end = self._nodes()
        if end is None or end.tokens[0].text != "end" or len(end.tokens) > 1:
            raise GoTemplateError(tag.offset, f"the {keyword} opened here has no {{{{ end }}}}.")
        self._depth -= 1
        return Block(keyword, pipe, body, orelse)
