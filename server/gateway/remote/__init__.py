"""Models of other servers with the OpenAI API: asked in place of this process's own, or by name."""
