"""Intervals against numbers computed by hand and against direct formulas."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.report import intervals

OURS = [0.70, 0.65, 0.80, 0.66, 0.71]
THEIRS = [0.50, 0.60, 0.55, 0.52, 0.57]


def test_a_paired_interval_by_hand():
    """Differences 0.2, 0.05, 0.25, 0.14, 0.14: mean 0.156, deviation 0.0750333, 2.776445 with 4 degrees."""
    found = intervals.paired(OURS, THEIRS)
    half = 2.776445 * 0.0750333 / math.sqrt(5)
    np.testing.assert_allclose([found.mean, found.low, found.high], [0.156, 0.156 - half, 0.156 + half], 1e-5)
    assert found.n == 5
    assert found.excludes_zero
    assert not found.excludes(0.2)
    assert found.within(0.3)
    assert not found.within(0.2)
    # t = 0.156 / (0.0750333 / sqrt(5)) = 4.64894
    np.testing.assert_allclose(found.p, 2 * stats.t.sf(4.64894, 4), rtol=1e-4)


def test_one_pair_and_pairs_that_agree_have_no_interval():
    for found in (
        intervals.paired([0.5], [0.4]),
        intervals.paired([0.3, 0.4, 0.5], [0.1, 0.2, 0.3]),  # differ in their last digits alone
        intervals.paired([], []),
    ):
        assert not found.is_known
        assert not found.excludes_zero
        assert not found.within(1)
        assert math.isnan(intervals.smallest_detectable(found))


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="shorter"):
        intervals.paired([1.0, 2.0], [1.0])


def test_the_pooled_interval_by_hand():
    """Variances 1, 4 and 1 of three seeds each: pooled 2, error sqrt(2 * 2/3), 2.446912 with 6 degrees."""
    cells = [[1.0, 2.0, 3.0], [8.0, 10.0, 12.0], [0.0, 1.0, 2.0]]
    found = intervals.pooled(cells[1], cells[0], cells)
    low, high = found.low, found.high
    half = 2.446912 * math.sqrt(4 / 3)
    np.testing.assert_allclose([low, high], [8 - half, 8 + half], rtol=1e-6)
    assert not intervals.pooled([1.0], [2.0], [[1.0], [2.0]]).is_known
    assert not intervals.pooled([1.0, 1.0], [2.0, 2.0], [[1.0, 1.0], [2.0, 2.0]]).is_known


def test_the_pooled_interval_of_two_cells_is_scipys_two_sample_test():
    test = stats.ttest_ind(OURS, THEIRS)
    expected = test.confidence_interval(0.95)
    found = intervals.pooled(OURS, THEIRS, [OURS, THEIRS])
    np.testing.assert_allclose([found.low, found.high, found.p], [expected.low, expected.high, test.pvalue])


def test_welchs_interval_by_hand():
    """1, 2, 3 against 0, 0, 6, 6: variances 1 and 12, error sqrt(1/3 + 3), freedom (10/3)^2 / (1/18 + 3) = 40/11."""
    found = intervals.welch([1.0, 2.0, 3.0], [0.0, 0.0, 6.0, 6.0])
    half = stats.t.ppf(0.975, 40 / 11) * math.sqrt(10 / 3)
    assert (found.mean, found.low, found.high) == pytest.approx((-1.0, -1 - half, -1 + half))
    assert found.p == pytest.approx(2 * stats.t.sf(1 / math.sqrt(10 / 3), 40 / 11))
    assert found.n == 3
    assert not intervals.welch([1.0], [0.0, 1.0]).is_known
    assert not intervals.welch([1.0, 1.0], [2.0, 2.0]).is_known


def test_holm_by_hand():
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, never falling."""
    adjusted = intervals.holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(intervals.holm([0.6, math.nan, 0.9]), [1.0, math.nan, 1.0])
    assert intervals.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(deadline=None)
def test_holm_rejects_as_its_step_down_procedure_does(p_values):
    adjusted = intervals.holm(p_values)
    rejected = set()
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] * (len(p_values) - rank) > 0.05:
            break
        rejected.add(i)
    ties = {i for i, p in enumerate(p_values) if any(p == p_values[j] for j in rejected)}
    assert {i for i, p in enumerate(adjusted) if p <= 0.05} == rejected | ties
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_the_smallest_detectable_difference_is_found_in_four_of_five_repetitions(n):
    found = intervals.paired(np.arange(n) + 0.5 * (np.arange(n) % 2), np.zeros(n))
    effect = intervals.smallest_detectable(found)
    random = np.random.default_rng(0)
    samples = random.normal(effect, found.deviation, (40_000, n))
    share = np.mean(stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05)
    assert abs(share - 0.8) < 0.01
