"""A small simulated arm: scene, physics, cameras, a scripted expert and its messages; no ROS, no torch."""
