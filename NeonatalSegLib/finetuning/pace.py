"""How many steps fit into the time that a user gave, seen from the steps that were done."""

from __future__ import annotations

import time
from collections.abc import Callable

STEPS_TO_TIME = 4  # the first is slow: memory is laid out
FEWEST = 20  # fewer steps teach nothing, however slow the machine is


class Pace:
    """Where a training stands: what share of it is done, and how many steps it will take.

    With enough time it is ``step / steps``. Where time will not suffice the rest of the way is walked in the steps that
    still fit, so that the learning rate always falls to 0 at the end and not in the middle.

    Args:
        steps: at most.
        seconds_left: for all of them, judgements between them included; None: as long as they take.
        clock: seconds.

    Example:
        >>> pace = Pace(40)
        >>> for _ in range(10):
        ...     pace.step_done()
        >>> round(pace.share, 6), pace.steps
        (0.25, 40)
    """

    def __init__(self, steps: int, seconds_left: float | None = None, clock: Callable[[], float] = time.perf_counter):
        self.most, self.steps, self.done, self.share = steps, steps, 0, 0.0
        self._clock = clock
        self._end = None if seconds_left is None else clock() + seconds_left
        self._first = self._before = 0.0

    @property
    def over(self) -> bool:
        """True when the last step was done."""
        return self.done >= self.steps

    def step_done(self) -> None:
        """Count a step."""
        self.done += 1
        left = self.most - self.done
        if self._end is not None:
            now = self._clock()
            if self.done == 1:
                self._first = now
            elif self.done >= STEPS_TO_TIME:
                seconds = (now - self._first) / (self.done - 1)
                left = max(min(left, int((self._end - now) / max(seconds, 1e-9))), min(left, FEWEST - self.done), 0)
        self.steps = self.done + left
        self._before = self.share
        self.share += (1 - self.share) / (left + 1)

    def learning_rate(self, warm_up: float) -> float:
        """Of the next step, 0-1: rises within the share ``warm_up`` and falls to 0 at the end."""
        rising = min(1.0, (self.share + 1 / self.steps) / warm_up) if warm_up else 1.0
        return float(rising * (1 - self.share) ** 0.9)

    def passed(self, every: float) -> bool:
        """True where the step that was just done went over a multiple of ``every`` (0-1), or was the last."""
        return self.over or int(self.share / every + 1e-9) > int(self._before / every + 1e-9)
