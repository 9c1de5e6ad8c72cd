"""Bags in, datasets out: reading and writing rosbag2, conversion by the frame rule, windows for training."""
