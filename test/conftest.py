"""What holds for all tests."""

from hypothesis import settings

# A machine that is busy with something else is slow, not wrong.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")
