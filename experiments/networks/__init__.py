"""Networks on real data, one script a claim: `python -m experiments.networks --quick`."""
