"""Networks and checkpoints of other projects, mapped onto ours: one network, two sets of names."""
