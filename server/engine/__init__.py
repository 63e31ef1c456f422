"""Slots, scheduling and the one inference thread. Knows neither llama.cpp nor the web."""
