"""Which image: matrix rows, options and their origins, definitions."""
