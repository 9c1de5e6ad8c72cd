"""ROS nodes: wiring between topics and the parts that know no ROS."""
