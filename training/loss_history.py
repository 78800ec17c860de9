"""Whether the loss jumps."""

import itertools
import math
import statistics
from collections import deque


class LossHistory:
    """Loss spikes: means of log intervals far above the last ones before them.

    Far is ten standard deviations, and at least a tenth, above their median. The deviation is a robust one of the
    differences from one interval to the next, which a loss that falls leaves small. Many runs recover: no end.
    """

    LAST, FIRST, FAR = 20, 10, 10.0  # intervals that are looked back at, at most and at least; standard deviations

    def __init__(self):
        self.losses = deque(maxlen=self.LAST)

    def usual_if_spike(self, loss: float) -> float | None:
        """The median of the intervals before, if `loss` is a spike, else None. Keeps `loss` either way."""
        before = list(self.losses)
        self.losses.append(loss)
        if len(before) < self.FIRST:
            return None
        steps = [later - earlier for earlier, later in itertools.pairwise(before)]
        slope = statistics.median(steps)
        deviation = 1.4826 * statistics.median(abs(step - slope) for step in steps) / math.sqrt(2)
        median = statistics.median(before)
        return median if loss > median + max(self.FAR * deviation, 0.1 * abs(median)) else None
