"""The toy model that onegpu ships with: its facts, its training data, its training and its check."""
