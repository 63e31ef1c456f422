"""llama.cpp: loading a model, its vocabulary, samplers and the decode loop.

The only importer of `llama_cpp`.
"""
