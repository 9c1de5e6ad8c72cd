"""Publishes joint states as fast as it can, until it is killed."""

import rclpy
from sensor_msgs.msg import JointState

if __name__ == "__main__":
    rclpy.init()
    node = rclpy.create_node("flood")
    publisher = node.create_publisher(JointState, "/gripper/joint_states", 10)
    fingers = JointState(name=["left", "right"], position=[0.0, 0.0])
    while True:
        fingers.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(fingers)
