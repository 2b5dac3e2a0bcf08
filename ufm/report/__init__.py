"""Pages about runs: their settings, results and verdicts. Needs the extra [report]."""
