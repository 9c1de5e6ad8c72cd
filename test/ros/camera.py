"""A camera as a process of its own, to be killed: `camera.py WIDTH HEIGHT ENCODING`.

It takes an image, all black, whenever the arm tells its pose, and gives it the same stamp.
"""

import sys

import rclpy
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import Image

if __name__ == "__main__":
    width, height, encoding = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    rclpy.init()
    node = rclpy.create_node("camera")
    publisher = node.create_publisher(Image, "/agentview/image_raw", 10)
    image = Image(height=height, width=width, encoding=encoding, step=3 * width)
    image.data = bytes(3 * width * height)

    def publish(pose):
        """Now."""
        image.header.stamp = pose.header.stamp
        publisher.publish(image)

    node.create_subscription(PoseStamped, "/eef_pose", publish, 10)
    rclpy.spin(node)
