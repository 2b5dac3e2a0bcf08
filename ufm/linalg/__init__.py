"""Linear algebra for any model: Lanczos, MINRES, small eigenproblems, scaling by powers of two."""
