"""What holds for all tests, whatever the machine, the shell and the user's own settings are."""

import os
import signal
import sys

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy with something else is slow, not wrong.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# A shell starts what it puts into the background with SIGINT ignored, and every child inherits
# that; the tests that interrupt a process would then wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# As nohup has it with SIGHUP: heard here and passed over, it is asked of what a test starts.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# Before torch is imported, and for every process that a test starts: small networks gain nothing
# by a second thread, and crawl beside other work with it.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["COLUMNS"] = "100"  # argparse and tqdm fold what they print to the terminal
for shells_own in ("ROS_DOMAIN_ID", "ROS_STATIC_PEERS", "RMW_IMPLEMENTATION", "MUJOCO_GL"):
    os.environ.pop(shells_own, None)


def pytest_collection_modifyitems(items):
    """Files that take long begin first, so that none is left over at the end of a run."""
    items.sort(key=lambda item: not any(map(item.get_closest_marker, ("ros", "compiles"))))


hidden = pytest.MonkeyPatch()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """A GPU is there for the tests that are marked so; the others compute on the CPU."""
    hidden.undo()
    if item.get_closest_marker("gpu") is None:
        hidden.setenv("CUDA_VISIBLE_DEVICES", "")  # for processes, and a torch that comes later
        if "torch" in sys.modules:
            hidden.setattr("torch.cuda.is_available", lambda: False)
