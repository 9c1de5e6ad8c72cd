"""The policy node with a sampler that fails as the files in a folder say: for the tests.

    python faulty_policy.py FOLDER --ros-args …

A file `nan` makes its output not finite, `raise` makes it raise, and it waits while there is a
file `stall`. A clock that stands still is not reported: the tests' clock waits for the node. It
reports often, so that the tests need not wait.
"""

import sys
import time
from pathlib import Path

from diffusion_policy_ros.policy.samplers import SAMPLERS
from diffusion_policy_ros.ros import policy_node, robot_link


def faulty(sampler, folder):
    """The sampler, with the faults that the folder has."""

    def sample(*args, **settings):
        while (folder / "stall").exists():
            time.sleep(0.001)
        if (folder / "raise").exists():
            raise RuntimeError("no memory left")
        return sampler(*args, **settings) * (float("nan") if (folder / "nan").exists() else 1.0)

    return sample


if __name__ == "__main__":
    robot_link.CLOCK_STANDS_S, policy_node.REPORT_S = 1e6, 0.02
    SAMPLERS.update({name: faulty(each, Path(sys.argv[1])) for name, each in SAMPLERS.items()})
    sys.exit(policy_node.main())
