"""An action player in a process of its own, as a test sees it."""

from diagnostic_msgs.msg import DiagnosticArray
from live import LATCHED
from std_msgs.msg import String
from toy_robot import seconds


class Player:
    """Its process, what it says and what can be asked of it.

    Args:
        domain: where.
        name: in full.
        words: of its command line.
        parameters: of it.

    Attributes:
        states: every state that it published.
        said_s: when it made the report that was waited for last, s.
    """

    def __init__(self, domain, name="/action_player", words=(), **parameters):
        self.domain, self.name = domain, name
        self.states = domain.listen(String, f"{name}/state", LATCHED)
        self._arrays = domain.listen(DiagnosticArray, "/diagnostics", 1000)
        namespace, _, node = name.rpartition("/")
        words = ["--ros-args", "-r", f"__node:={node}", "-r", f"__ns:={namespace or '/'}", *words]
        self._start = lambda: domain.start("action_player", *words, **parameters)
        self.process, self.said_s = self._start(), 0.0

    def restart(self):
        """A new process like the first."""
        self.process = self._start()

    @property
    def _own(self):
        name = f"{self.name}: player"
        return [array for array in self._arrays if array.status[0].name == name]

    @property
    def reports(self):
        """Of this player, in order."""
        return [array.status[0] for array in self._own]

    def values(self):
        """Of the newest report."""
        return {entry.key: entry.value for entry in self.reports[-1].values}

    def until_says(self, text):
        """Wait for a report from now on with this in its message."""
        seen = len(self.reports)
        new = lambda: next((a for a in self._own[seen:] if text in a.status[0].message), None)  # noqa: E731
        said = lambda: f"the player reports {text!r}, not {[s.message for s in self.reports[-3:]]}"  # noqa: E731
        array = self.domain.until(new, why=said)
        self.said_s = seconds(array)
        return array.status[0]

    def until_counts(self, key):
        """Wait until a report has this value."""
        said = lambda: f"{key} is counted in {self.values()}"  # noqa: E731
        return self.domain.until(lambda: self.values().get(key) not in (None, "", "0"), why=said)

    def call(self, service):
        """One of its services."""
        return self.domain.call(f"{self.name}/{service}")

    def set(self, name, value):
        """A parameter."""
        return self.domain.set(self.name, name, value)
