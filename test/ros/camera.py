"""A camera as a process of its own, to be killed: `camera.py WIDTH HEIGHT ENCODING`."""

import sys

import rclpy
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import Image

if __name__ == "__main__":
    width, height, encoding = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    rclpy.init()
    node = rclpy.create_node("camera")
    publisher = node.create_publisher(Image, "/agentview/image_raw", 10)
    image = Image(height=height, width=width, encoding=encoding, step=3 * width)
    image.data = bytes(3 * width * height)

    def publish():
        """One image, all black."""
        image.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(image)

    node.create_timer(0.05, publish, clock=Clock(clock_type=ClockType.STEADY_TIME))
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        pass
