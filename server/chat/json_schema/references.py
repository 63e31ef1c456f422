"""Where the references of a schema lead: pointers, anchors and identifiers of one document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from server.chat.json_schema.refusal import Pointer, Refused

_ONE = (
    "additionalItems",
    "additionalProperties",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_SOME = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = (
    "$defs",
    "definitions",
    "dependencies",
    "dependentSchemas",
    "patternProperties",
    "properties",
)
_MAX_PARTS = 200


class Document:
    """One schema with all that lies in it. Nothing is ever fetched."""

    def __init__(self, root: Any) -> None:
        """Index the identifiers and anchors. Raises `Refused` where two are the same."""
        self._root = root
        self._bases: dict[Pointer, str] = {(): ""}
        self._resources: dict[str, Pointer] = {"": ()}
        self._anchors: dict[tuple[str, str], Pointer] = {}
        pending: list[tuple[Pointer, Any]] = [((), root)]
        while pending:
            at, schema = pending.pop()
            if isinstance(schema, dict):
                self._index(at, schema)
                pending += subschemas(schema, at)

    @property
    def old(self) -> bool:
        """Whether it says that it is of a draft up to 7."""
        return isinstance(self._root, dict) and "/draft-0" in str(self._root.get("$schema"))

    @property
    def single(self) -> bool:
        """Whether no part has an identifier of its own: then dynamic references are plain ones."""
        return len(set(self._resources.values())) == 1

    def at(self, pointer: Pointer) -> Any:
        """Return what lies there. Raises `KeyError`."""
        found = self._root
        for key in pointer:
            if isinstance(found, dict):
                found = found[key]
            elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            else:
                raise KeyError(key)
        return found

    def places(self, at: Pointer) -> list[Pointer]:
        """Where all the schemas are that hold wherever the one there does, itself first."""
        found = [at]
        for place in found:
            schema = self.at(place)
            if isinstance(schema, dict):
                if "$ref" in schema:
                    found.append(self.resolve(schema["$ref"], place))
                members = schema.get("allOf")
                if isinstance(members, list):
                    found += [(*place, "allOf", str(i)) for i in range(len(members))]
            if len(set(found)) < len(found) or len(found) > _MAX_PARTS:
                raise Refused("'$ref' leads to the same schema in too many ways", at)
        return [place for place in found if isinstance(self.at(place), dict)]

    def parts(self, at: Pointer) -> list[Mapping[str, Any]]:
        """Return the schemas at `places`."""
        return [self.at(place) for place in self.places(at)]

    def resolve(self, reference: Any, at: Pointer, keyword: str = "$ref") -> Pointer:
        """Return where a reference in the schema at `at` leads. Raises `Refused`."""
        if not isinstance(reference, str):
            raise Refused(f"'{keyword}' must be a string", at)
        unknown = Refused(f"'{keyword}' leads out of the schema or to nothing: {reference!r}", at)
        address, fragment = urldefrag(_joined(self._base(at), reference))
        resource = self._resources.get(address)
        if resource is None:
            raise unknown
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            anchored = self._anchors.get((address, fragment))
            if anchored is None:
                raise unknown
            return anchored
        keys = [key.replace("~1", "/").replace("~0", "~") for key in fragment.split("/")[1:]]
        target = (*resource, *keys)
        try:
            self.at(target)
        except KeyError as error:
            raise unknown from error
        return target

    def _index(self, at: Pointer, schema: Mapping[str, Any]) -> None:
        base = self._base(at[:-1])
        identifier = schema.get("$id")
        if isinstance(identifier, str) and not identifier.startswith("#"):
            base = urldefrag(_joined(base, identifier)).url
            if self._resources.setdefault(base, at) not in (at, ()):
                raise Refused(f"'$id' {identifier!r} is used twice", at)
            if not at:
                self._resources[base] = at
        self._bases[at] = base
        for keyword in ("$anchor", "$dynamicAnchor"):
            anchor = schema.get(keyword)
            if isinstance(anchor, str):
                self._anchors[base, anchor] = at

    def _base(self, at: Pointer) -> str:
        while at not in self._bases:
            at = at[:-1]
        return self._bases[at]


def subschemas(schema: Mapping[str, Any], at: Pointer) -> Iterator[tuple[Pointer, Any]]:
    """The schemas directly inside one, where keywords put them."""
    for keyword in _ONE:
        if keyword in schema and not isinstance(schema[keyword], list):
            yield (*at, keyword), schema[keyword]
    for keyword in _SOME:
        members = schema.get(keyword)
        if isinstance(members, list):
            yield from (((*at, keyword, str(i)), member) for i, member in enumerate(members))
    for keyword in _NAMED:
        members = schema.get(keyword)
        if isinstance(members, dict):
            yield from (((*at, keyword, name), member) for name, member in members.items())


def _joined(base: str, reference: str) -> str:
    if reference.startswith("#"):
        return urldefrag(base).url + reference
    return urljoin(base, reference)
