"""The parts of the documentation that are made from code and results when the site is built."""
