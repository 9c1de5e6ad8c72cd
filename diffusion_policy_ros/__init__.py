"""Record, convert, train and run a Diffusion Policy on a ROS 2 arm."""

__version__ = "0.1.0"
