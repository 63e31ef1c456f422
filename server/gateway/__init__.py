"""Policy between the API and the engine: who is admitted, how text becomes token ids, who waits."""
