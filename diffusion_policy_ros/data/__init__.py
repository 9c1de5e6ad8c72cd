"""Bags in, datasets out: rosbag2, conversion by the frame rule, windows for training."""
