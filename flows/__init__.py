"""Prefect flows, runners and the command line."""
