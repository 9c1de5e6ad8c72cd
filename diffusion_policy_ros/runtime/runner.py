"""The thread of inference: the live driver of a `PolicyLoop`.

Messages, timers and services take turns with the loop; this thread samples outside of its turn, so
that nothing waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from diffusion_policy_ros.runtime.policy_loop import PolicyLoop

STOP_S = 3.0
"""How long an inference is waited for that cannot be interrupted: whoever started the node kills
it when it takes much longer to end."""
HANDOVER_S = 0.0005
"""How long the thread that brought a window steps aside: Python runs one thread at a time, and the
inference is the urgent one now. It makes chunks come half a millisecond earlier."""


class Runner:
    """Lets threads take turns with a loop, and samples its windows on a thread of its own.

    Args:
        loop: only to be called within `turn`.
    """

    def __init__(self, loop: PolicyLoop) -> None:
        self._loop, self._turn = loop, threading.Condition()
        self._thread: threading.Thread | None = None
        self._ending: threading.Thread | None = None
        self._engine_is_free = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[PolicyLoop]:
        """Have the loop to oneself; what it wants sampled after that is begun at once."""
        with self._turn:
            before = self._loop.waiting
            yield self._loop
            fresh = self._loop.waiting is not None and self._loop.waiting is not before
            if fresh:
                self._turn.notify()
        if fresh and self._thread is not None:
            time.sleep(HANDOVER_S)

    def start(self) -> None:
        """Start the inference thread."""
        self._thread = threading.Thread(target=self._infer_all, name="inference", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = STOP_S) -> bool:
        """End the inference thread after what it is doing; whether it has ended, by then."""
        self._ending, self._thread = self._thread or self._ending, None
        if self._ending is None:
            return True
        with self._turn:
            self._turn.notify_all()
        self._ending.join(timeout_s)
        return not self._ending.is_alive()

    def _infer_all(self) -> None:
        # Not a flag: one that is still sampling when the next is started must end all the same.
        me, loop = threading.current_thread(), self._loop
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._thread is not me or loop.waiting is not None)
                if self._thread is not me:
                    return
                request = loop.due()
            if request is not None:
                with self._engine_is_free:  # a thread that was stopped may still be in it
                    inference = loop.infer(request)
                with self._turn:
                    loop.take(inference)
