"""One process that serves a GGUF model from a fixed pool of KV-cache slots."""

__version__ = "0.1.0"
