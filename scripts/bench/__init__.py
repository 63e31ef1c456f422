"""Parts of bench_engine.py: the bare loop, the HTTP client, and the processes they run in."""
