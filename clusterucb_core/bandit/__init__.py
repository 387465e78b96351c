"""The bandit: policies and the pull loop."""
