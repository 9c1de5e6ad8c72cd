"""What holds for all tests."""

import signal

from hypothesis import settings

# A machine that is busy with something else is slow, not wrong.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")

# A shell starts what it puts into the background with SIGINT ignored, and every child inherits
# that; the tests that interrupt a process would then wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
