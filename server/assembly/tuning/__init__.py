"""Tuning: what suits a model on this machine is measured once, kept in a profile, and served with."""
