"""Training: `trainer.py`, read from top to bottom; `progress.py` is what people see of it."""
