"""Modelfiles: Ollama's description of a model, read as the description of an agent.

Facts about the syntax: github.com/ollama/ollama, docs/modelfile.mdx and parser/parser.go.
"""

from server.catalog.modelfile.document import FOREVER, Modelfile
from server.catalog.modelfile.reading import (
    find_modelfiles,
    parse_modelfile,
    read_modelfile,
    resolve,
    served_name,
)

__all__ = [
    "FOREVER",
    "Modelfile",
    "find_modelfiles",
    "parse_modelfile",
    "read_modelfile",
    "resolve",
    "served_name",
]
