"""Networks and checkpoints of other projects, mapped onto ours: one implementation, two sets of names."""
