"""Stages: one core call each, from its spec and the artifacts before it to the next artifact."""
