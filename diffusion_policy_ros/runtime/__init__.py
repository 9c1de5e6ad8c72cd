"""Windows become chunks, chunks become set-points; no ROS."""
