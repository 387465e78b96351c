"""Targets: their rows, and the check for leaks into the pool."""
