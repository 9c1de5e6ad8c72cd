"""Policy node and action player without each other: the arm stays, both say why, both go on."""

import signal

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install -e '.[ros]'")

from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from geometry_msgs.msg import PoseStamped  # noqa: E402
from nodes import Policy  # noqa: E402

pytestmark = pytest.mark.ros


class Player:
    """The action player's process, what it tells the robot and what it says.

    Attributes:
        poses: every set-point.
    """

    def __init__(self, domain):
        self.domain = domain
        self.poses = domain.listen(PoseStamped, "/action_player/pose")
        self._arrays = domain.listen(DiagnosticArray, "/diagnostics")
        self.start()

    def start(self):
        self.process = self.domain.start(
            "action_player", contract="mini_lift", rate_hz=50.0, armed=True
        )

    def until_says(self, text):
        """Wait for a report that is made from now on."""
        seen = len(self._arrays)

        def said():
            status = [array.status[0] for array in self._arrays[seen:]]
            return any(s.name == "/action_player: player" and text in s.message for s in status)

        self.domain.until(said, why=f"the player reports {text!r}")

    def next_poses(self, count):
        """Where it tells the arm to be, from now on."""
        seen = len(self.poses)
        self.domain.until(lambda: len(self.poses) >= seen + count, why="set-points come")
        return [pose.pose for pose in self.poses[seen:]]


@pytest.fixture
def player(domain, robot):
    """An arm at rest, and its player."""

    def at_rest(topic, message):
        if topic == "/eef_pose":
            place = message.pose.position
            place.x, place.y, place.z = 0.0, 0.0, 0.2
        return message

    robot.change = at_rest
    return Player(domain)


def kill(process):
    """End it without a word."""
    process.signal(signal.SIGKILL)
    process.wait()


def test_a_player_whose_policy_dies_holds_where_it_is(domain, player, checkpoint):
    """No hold was published: what it has runs out, set-points go on and stand still."""
    player.until_says("holding: ")
    policy = Policy(domain, checkpoint)
    policy.until_running()
    player.until_says("playing")
    kill(policy.process)
    player.until_says("holding: ")
    player.next_poses(50)
    first, *others = player.next_poses(20)
    assert all(pose == first for pose in others)
    again = Policy(domain, checkpoint)
    again.until_running()
    player.until_says("playing")


def test_a_policy_whose_player_dies_runs_on_and_is_played_again(domain, player, checkpoint):
    """It owes the player nothing; the next one begins at the measured pose."""
    policy = Policy(domain, checkpoint)
    policy.until_running()
    player.until_says("playing")
    kill(player.process)
    seen = len(policy.chunks)
    domain.until(lambda: len(policy.chunks) > seen + 5, why="chunks come all the same")
    policy.until_says("running")
    player.start()
    player.until_says("playing")
    assert player.next_poses(1)
