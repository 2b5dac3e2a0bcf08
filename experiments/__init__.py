"""One script a claim; `python -m experiments` runs them all and prints the verdicts."""
