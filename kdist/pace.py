"""The pace: how many steps an execution fuses.

K as it was given; for "auto" as many as take a quarter of a second, so that a bar moves and a preemption is answered.
"""

from __future__ import annotations

import collections

from kdist.distribution import agree

EXECUTION_SECONDS = 0.25
"""steps_per_execution="auto" fuses this much work."""
TIMED = 3
"""How many executions "auto" waits for to learn how long a step takes."""


class Pace:
    """How many steps an execution fuses, by kind of step: "train", "test" or "predict".

    Args:
        steps_per_execution: K, or "auto".

    Attributes:
        given: K, if it was given.
    """

    def __init__(self, steps_per_execution: int | str) -> None:
        self.given: int | None = steps_per_execution if isinstance(steps_per_execution, int) else None
        self._known: dict[str, int] = {}
        self._timed: collections.Counter[str] = collections.Counter()

    def steps(self, kind: str, most: int) -> int:
        """Steps of the next execution: K exactly, or at most `most` of them."""
        return self.given or min(self._known.get(kind, 1), most)

    def is_wanted(self, kind: str) -> bool:
        """Whether the next execution is to be timed, which needs waiting for it."""
        return self.given is None and self._timed[kind] < TIMED

    def measure(self, kind: str, steps: int, seconds: float) -> None:
        """Takes in how long an execution took.

        The first compiles.  One step is timed, then as many as that one allows, which corrects what a hiccup has
        spoiled.
        """
        self._timed[kind] += 1
        if self._timed[kind] > 1:
            self._known[kind] = agree(max(1, int(EXECUTION_SECONDS * steps / seconds)))
