"""Reading, validating and de-duplicating pool sources."""
