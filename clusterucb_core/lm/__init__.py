"""Language models: templates, tokens, adapters, checkpoints."""
