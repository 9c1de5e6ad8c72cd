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
FIRST_PARTICIPANT, LAST = 10, 249  # a domain with anybody in it uses the one, and none the other


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
    ports = FIRST_PORT + PORTS * domain
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            held.bind(("", ports + LAST))
            probe.bind(("", ports + FIRST_PARTICIPANT))
        except OSError:
            return True
    return False
