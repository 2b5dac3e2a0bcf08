"""One script per claim; `python -m experiments` runs them all and prints the verdicts."""
