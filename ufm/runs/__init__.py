"""Runs on disk: files written atomically, the life of a run, JSON values, verdicts on claims."""
