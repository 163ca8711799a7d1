"""What n trials say: means with their intervals, and which differences are differences.

Intervals are Student's t at 95 %; trials are paired by their seed, which two methods share with the
first weights of the student and the order of the images.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy.stats import rankdata, t

from runs.table import spread

LEVEL = 0.95
MOST_TRIALS = 1000  # that anybody would run


class Difference(NamedTuple):
    """Mean difference of paired trials."""

    mean: float
    half: float | None  # half of the interval; None of a single pair
    n: int  # pairs

    @property
    def significant(self) -> bool:
        """Whether its interval leaves 0 out, and is no point."""
        return bool(self.half) and abs(self.mean) > self.half

    @property
    def trials_needed(self) -> int | None:
        """Trials with which it were significant, should mean and deviation stay; None past
        MOST_TRIALS."""
        if not self.half:
            return None
        deviation = self.half / half_of(1.0, self.n)
        numbers = range(2, MOST_TRIALS + 1)
        return next((n for n in numbers if half_of(deviation, n) < abs(self.mean)), None)


def half_of(deviation: float, n: int) -> float:
    """Half of the interval of a mean of n values with this sample deviation."""
    return float(t.ppf((1 + LEVEL) / 2, n - 1)) * deviation / math.sqrt(n)


def half_interval(values: Sequence[float]) -> float | None:
    """Half of the interval of their mean; None of one value."""
    deviation = spread(values).std
    return None if deviation is None else half_of(deviation, len(values))


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Ours minus theirs, by seed; None where they share no seed."""
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not differences:
        return None
    return Difference(spread(differences).mean, half_interval(differences), len(differences))


def ranks(means: Sequence[float | None]) -> list[float | None]:
    """1 for the largest; equal ones share the mean of their places; None stays None."""
    places = iter(rankdata([-mean for mean in means if mean is not None]))
    return [None if mean is None else float(next(places)) for mean in means]
