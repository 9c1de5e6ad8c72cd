"""The learning core: plain PyTorch that knows the contract and nothing of ROS.

Nothing is imported here, so that the NumPy half (`rotations`) comes without torch.
"""
