"""The command line: one file a verb; each prints and returns the exit code."""
