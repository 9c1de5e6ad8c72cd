"""A DDS domain for oneself: nobody else on this machine speaks in it."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from diffusion_policy_ros.errors import UserError

DOMAINS = range(1, 100)
"""Their ports end below 32768, where Linux begins to give ports to whoever asks for any."""
FIRST_PORT, PORTS = 7400, 250  # of domain 0, and of each domain: DDSI-RTPS 2.3, section 9.6.1
FOR_ALL, FIRST_PARTICIPANT, EACH, LAST = 0, 10, 2, 249
"""A domain's ports: for all, of the first participant, so far to the next one's; nobody uses the
last."""


@contextmanager
def free_domain() -> Iterator[int]:
    """A domain that nobody is in, ours until the end of the block.

    What keeps it is a UDP port of the domain's own that DDS does not use, held by this process: it
    is free again when the process ends, however it does.

    Raises:
        UserError: all are taken.
    """
    for domain in random.sample(DOMAINS, len(DOMAINS)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
            if _taken(held, domain):
                continue
            yield domain
            return
    raise UserError("all are taken", "DDS domain", "end other ROS systems, or set ROS_DOMAIN_ID")


def _taken(held: socket.socket, domain: int) -> bool:
    """Whether somebody has or uses it; if not, `held` keeps it."""
    first = FIRST_PORT + PORTS * domain
    # The first participant may have left while others stay; they would be met.
    used = (FOR_ALL, *range(FIRST_PARTICIPANT, LAST, EACH))
    return not _bound(held, first + LAST) or any(_in_use(first + port) for port in used)


def _in_use(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return not _bound(probe, port)


def _bound(to: socket.socket, port: int) -> bool:
    try:
        to.bind(("", port))
    except OSError:
        return False
    return True
