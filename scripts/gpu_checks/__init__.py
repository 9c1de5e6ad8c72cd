"""The parts of `gpu_check.py`, one file each."""
