"""One package for each infrastructure."""
