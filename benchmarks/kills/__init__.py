"""Kills runs at chosen and at random points, runs them again, and looks at what the state folder holds."""
