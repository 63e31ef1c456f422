"""A chat in the terminal: what `onegpu run` is made of."""
