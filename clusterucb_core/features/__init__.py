"""Per-sample gradient features: hooks, projections, shards."""
