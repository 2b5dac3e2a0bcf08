"""Benchmarks: paired in one process, medians of ratios, results as JSON."""
