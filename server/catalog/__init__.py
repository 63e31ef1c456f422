"""Model files: what a GGUF's header says."""
