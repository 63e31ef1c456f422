"""Policy between the API and the engine: who is admitted, how a request becomes token ids, who waits."""
