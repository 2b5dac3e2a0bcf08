"""Linear algebra that knows no model: Lanczos, MINRES, powers of two that keep squares in range."""
