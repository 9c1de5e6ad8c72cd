"""Networks and checkpoints of other projects, into this one and out of it; no node imports it."""
