"""How tests and the demo find a DDS domain that nobody else is in."""

import socket
import subprocess
import sys

import pytest

from diffusion_policy_ros.demo import domains
from diffusion_policy_ros.demo.domains import free_domain
from diffusion_policy_ros.errors import UserError

PORTS, FIRST, LAST = 40, 10, 30


@pytest.fixture
def ports(monkeypatch):
    """Small domains within the ports of a domain that is ours: nobody meets us in this test."""
    with free_domain() as number:
        first = 7400 + 250 * number + 20
        for name, value in {"FIRST_PORT": first, "PORTS": PORTS, "LAST": LAST}.items():
            monkeypatch.setattr(domains, name, value)
        yield first


def test_two_never_have_the_same_domain(monkeypatch, ports):
    """Of two domains each gets one, the third is told that all are taken, and both come back."""
    monkeypatch.setattr(domains, "DOMAINS", range(1, 3))
    with free_domain() as one, free_domain() as other:
        assert {one, other} == {1, 2}
        with pytest.raises(UserError, match="all are taken"), free_domain():
            pass
    with free_domain() as again:
        assert again in (1, 2)


@pytest.mark.parametrize("port", [0, FIRST, FIRST + 2, LAST - 2])
def test_a_domain_with_somebody_in_it_is_left_alone(monkeypatch, ports, port):
    """Also where whoever came first has gone: the later ones keep their ports."""
    monkeypatch.setattr(domains, "DOMAINS", range(1, 3))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as participant:
        participant.bind(("", ports + PORTS * 1 + port))
        with free_domain() as found:
            assert found == 2


KEEP = """
import sys
from diffusion_policy_ros.demo import domains
domains.DOMAINS = [1]
domains.FIRST_PORT, domains.PORTS, domains.LAST = map(int, sys.argv[1:])
with domains.free_domain():
    print("taken", flush=True)
    sys.stdin.read()
"""


def test_a_process_that_is_killed_gives_its_domain_back(monkeypatch, ports):
    """Nothing is left behind that somebody would have to remove."""
    monkeypatch.setattr(domains, "DOMAINS", range(1, 2))
    command = [sys.executable, "-c", KEEP, *map(str, (ports, PORTS, LAST))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "taken\n"
        with pytest.raises(UserError), free_domain():
            pass
        other.kill()
    with free_domain() as found:
        assert found == 1


def test_no_domain_has_ports_that_anybody_may_be_given():
    """Linux gives ports from 32768 on to whoever asks for any."""
    assert 7400 + 250 * max(domains.DOMAINS) + 249 < 32768 and min(domains.DOMAINS) > 0
