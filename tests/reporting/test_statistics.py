"""reporting/statistics.py against scipy and numbers by hand."""

import numpy as np
import pytest
from scipy import stats

from reporting.statistics import Difference, half_interval, paired, ranks

OURS = {1: 71.2, 2: 70.4, 3: 71.9}
THEIRS = {1: 70.1, 2: 69.9, 3: 70.6, 4: 12.0}


def test_an_interval_is_students():
    values = list(OURS.values())
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert half_interval(values) == pytest.approx((high - low) / 2)
    # By hand: t(0.975, 2) = 4.302653, deviation of 1, 2, 3 is 1.
    assert half_interval([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / 3**0.5, abs=1e-6)


def test_trials_are_paired_by_seed_and_a_seed_of_one_alone_is_left_out():
    difference = paired(OURS, THEIRS)
    theirs = [THEIRS[seed] for seed in OURS]
    interval = stats.ttest_rel(list(OURS.values()), theirs).confidence_interval(0.95)
    assert difference.n == 3
    assert difference.mean - difference.half == pytest.approx(interval.low)
    assert difference.mean + difference.half == pytest.approx(interval.high)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0])
def test_significant_is_what_the_paired_t_test_says(shift):
    ours = {seed: value + shift for seed, value in OURS.items()}
    p = stats.ttest_rel([*ours.values()], [THEIRS[seed] for seed in ours]).pvalue
    assert paired(ours, THEIRS).significant == (p < 0.05)


def test_one_trial_claims_nothing():
    difference = paired({1: 80.0}, {1: 10.0})
    assert (difference.n, difference.half, difference.significant) == (1, None, False)
    assert half_interval([80.0]) is None
    assert paired({1: 80.0}, {2: 80.0}) is None


def test_equal_differences_are_no_spread_to_judge_by():
    assert not paired({1: 2.0, 2: 3.0}, {1: 1.0, 2: 2.0}).significant


def test_trials_needed_are_the_fewest_whose_interval_leaves_0_out():
    half = half_interval([0.0, 1.0, 2.0])  # deviation 1
    # t(0.975, 5) / sqrt(6) = 1.0494, t(0.975, 6) / sqrt(7) = 0.9248
    assert Difference(1.0, half, 3).trials_needed == 7
    assert Difference(1.05, half, 3).trials_needed == 6
    assert Difference(1e-6, half, 3).trials_needed is None


def test_ranks():
    assert ranks([70.0, None, 72.0, 71.0, 71.0]) == [4.0, None, 1.0, 2.5, 2.5]
