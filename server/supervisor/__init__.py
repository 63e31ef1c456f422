"""The process in front: keeps the listening socket, runs the worker, and starts it again when it dies.

Standard library and `server.core` alone, so that nothing native can take it down and it costs little.
"""
