"""The policy node with the noise that another project's policy was given: for the tests.

    python golden_noise.py GOLDEN --ros-args …

GOLDEN is an npz with `select_action/starts` (chunks, 1, H, A) and `select_action/noises`
(chunks, steps, 1, H, A). It reports often, so that the tests need not wait.
"""

import sys

import numpy as np
import torch

from diffusion_policy_ros.ros import policy_node, robot_link
from diffusion_policy_ros.runtime import inference


def golden(path):
    """A source of noise for each chunk, in the order of their times."""
    arrays, times = np.load(path), []

    def source(seed, time_ns):
        if time_ns not in times:
            times.append(time_ns)
        number = times.index(time_ns)
        start, noises = (arrays[f"select_action/{name}"][number] for name in ("starts", "noises"))
        left = iter([torch.from_numpy(start), *torch.from_numpy(noises)])
        return lambda like: next(left)

    return source


if __name__ == "__main__":
    robot_link.CLOCK_STANDS_S, policy_node.REPORT_S = 1e6, 0.02
    inference.noise_generator = golden(sys.argv[1])
    sys.exit(policy_node.main())
