"""Publishes poses as fast as it can, until it is killed."""

import rclpy
from geometry_msgs.msg import PoseStamped

if __name__ == "__main__":
    rclpy.init()
    node = rclpy.create_node("flood")
    publisher = node.create_publisher(PoseStamped, "/eef_pose", 10)
    pose = PoseStamped()
    pose.pose.orientation.w = 1.0
    while True:
        pose.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(pose)
