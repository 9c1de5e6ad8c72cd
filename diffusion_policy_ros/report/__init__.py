"""Pictures and pages of results: GIF of a rollout, HTML report."""
