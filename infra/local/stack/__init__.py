"""The local stack: PostgreSQL, a Prefect server, an MLflow server and workers as processes on loopback."""
