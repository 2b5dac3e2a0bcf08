"""Pages of runs: what was asked, what was found, whether it holds. Needs the extra [report]."""
