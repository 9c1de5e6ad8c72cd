"""A small simulated arm: scene, physics, cameras, expert and messages; no ROS, no torch."""
