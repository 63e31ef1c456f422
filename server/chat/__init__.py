"""From messages to prompt tokens, and back."""
