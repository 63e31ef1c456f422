"""Random weights in the shape of real models: shapes, tensors and their types, vocabulary, the file."""
