"""What is measured of a policy, and never runs on a robot."""
