"""JSON Schemas from clients: checked, and written anew so that all of it can be enforced.

What cannot be enforced is refused by name, never left out.
"""

from __future__ import annotations

import json
from typing import Any

from server.chat.json_schema.bounds import measure
from server.chat.json_schema.compilable import check_compilable
from server.chat.json_schema.progress import progressing, without_empty
from server.chat.json_schema.refusal import Refused
from server.chat.json_schema.rewriting import Rewriter

_STYLE = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    # Without `\\u`: a name in `properties` could be spelt with it and pass for another one.
    "json_allowed_escapes": 'nrbtf\\"',
}
"""How the answer writes JSON, for the compiler."""


def check_schema(schema: Any, param: str) -> str:
    """Return the JSON to compile (`GrammarSource.kind` json_schema).

    Raises `InvalidRequest` for `param` that names the keyword which is wrong or cannot be enforced.
    The work is bounded by the schema's size, which is bounded, too.
    """
    try:
        measure(schema)
        written, definitions = Rewriter(schema).run()
        definitions = progressing(written, definitions)
        check_compilable(written, definitions)
    except Refused as refused:
        raise refused.told(param) from refused
    whole = {
        **({} if written is True else without_empty(written, definitions)),
        "$defs": {name: without_empty(held, definitions) for name, held in definitions.items()},
        "x-guidance": _STYLE,
    }
    return json.dumps(whole, ensure_ascii=False)
