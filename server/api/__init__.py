"""HTTP: the only part that knows the web framework. Schemas, endpoints, errors, streams."""
