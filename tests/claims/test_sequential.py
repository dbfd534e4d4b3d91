"""The sequential paired test: what it says, and how often it is wrong."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from claims.answers import Rules
from claims.sequential import (
    FIRST,
    LAST,
    LEVEL,
    LEVELS,
    best_p,
    critical,
    crossing,
    decisions,
    judge,
    least_told,
    scaled_p,
    threshold,
    valid_p,
)

RNG = np.random.default_rng(3)


def differences(mean: float, sd: float, count: int, seed: int = 0) -> list[float]:
    """Of exactly this mean and sd."""
    d = np.random.default_rng(seed).standard_normal(count)
    return list(mean + sd * (d - d.mean()) / d.std(ddof=1))


def test_the_table_of_levels_is_what_null_sequences_do() -> None:
    null = np.random.default_rng(5).standard_normal((40_000, LAST))
    least = np.concatenate([scaled_p(null).min(-1), scaled_p(-null).min(-1)])
    for c, probability in LEVELS.items():
        found = float((least <= c).mean())
        assert abs(found - probability) < 5 * math.sqrt(probability / len(least)), (c, probability, found)
    assert crossing(critical(0.005)) == pytest.approx(0.005)
    assert threshold(0.01) < critical(0.005) and valid_p(threshold(0.01)) == pytest.approx(0.005)
    assert valid_p(0.5) == valid_p(1.0) == 1.0 and valid_p(0.0) == 0.0
    assert crossing(1e-9) < 2e-8 and crossing(0.0) == 0.0 and crossing(1.0) == 1.0
    chances = [crossing(c) for c in np.geomspace(1e-8, 1.0, 200)]
    assert chances == sorted(chances)


@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_a_wrong_answer_is_rare_however_often_one_looks(scale: float) -> None:
    null = scale * np.random.default_rng(6).standard_normal((20_000, LAST))
    at, sign = decisions(null, within=0.0)
    assert float((at >= 0).mean()) < LEVEL + 3 * math.sqrt(LEVEL / 20_000)
    assert set(np.unique(sign[at >= 0])) == {-1.0, 1.0}


def test_an_effect_of_three_sd_is_told_within_twelve_seeds() -> None:
    arms = np.random.default_rng(7).standard_normal((2, 5000, 12))
    at, sign = decisions(arms[0] - 3.0 - arms[1], within=0.0)
    assert float((at >= 0).mean()) >= 0.95 and (sign[at >= 0] == -1.0).mean() > 0.999


@pytest.mark.parametrize("seeds", [4, 8, 16, 64])
@pytest.mark.parametrize("level", [LEVEL, LEVEL / 6])
def test_what_a_number_of_seeds_tells(seeds: int, level: float) -> None:
    """With 90 %, and hardly more often."""
    effect = least_told(seeds, level)
    base, new = np.random.default_rng(11).standard_normal((2, 10_000, seeds))
    at, sign = decisions(new - effect - base, within=0.0, level=level)
    assert 0.89 < float(((at >= 0) & (sign < 0.0)).mean()) < 0.95
    assert least_told(seeds, level / 2) > effect


def test_no_difference_larger_than_d_is_wrong_in_at_most_five_per_cent() -> None:
    edge = 1.0 + np.random.default_rng(8).standard_normal((10_000, LAST))
    at, sign = decisions(edge, within=1.0)
    assert float(((at >= 0) & (sign == 0.0)).mean()) < 0.05


def p_less(d: list[float], mean: float) -> float:
    found: Any = stats.ttest_1samp(d, mean, alternative="less")
    return float(found.pvalue)


def test_p_is_students_at_the_look() -> None:
    d = differences(-0.3, 1.0, 9)
    expected = p_less(d, 0.0)
    assert scaled_p(d)[-1] * FIRST / 9 == pytest.approx(expected, rel=1e-9)
    shifted = p_less(d, -0.2)
    assert scaled_p(d, -0.2)[-1] * FIRST / 9 == pytest.approx(shifted, rel=1e-9)


def test_each_answer() -> None:
    helps = judge(differences(-0.05, 0.01, 6))
    assert helps.kind == "helps" and helps.high < 0 and helps.p < 0.01 and helps.more == 0
    assert helps.low < helps.mean < helps.high and helps.pairs == 6
    assert judge(differences(0.05, 0.01, 6)).kind == "hurts"
    same = judge(differences(0.001, 0.004, 12))
    assert same.kind == "same" and same.p > 0.01
    assert judge(differences(0.001, 0.004, 12), within=0.0).kind == "undecided"
    undecided = judge(differences(-0.02, 0.03, 8))
    assert undecided.kind == "undecided" and 8 < undecided.more < LAST
    more = np.random.default_rng(9).normal(-0.02, 0.03, (2000, 8 + undecided.more))
    at, _ = decisions(more)
    assert 0.6 < float((at >= 0).mean()) < 0.97  # what "about k more" promises


def test_an_interval_excludes_nothing_exactly_when_it_decides() -> None:
    for k in range(200):
        d = RNG.normal(-0.9, 1.0, 10)
        found = judge(list(d), within=0.0)
        now = found.high < 0 or found.low > 0  # also where an earlier look decided
        assert (found.kind != "undecided") == now == (found.p <= LEVEL), k


def test_the_interval_is_that_of_students_t_at_a_look_and_of_all_before_it() -> None:
    d = list(np.random.default_rng(4).normal(-0.9, 1.0, 12))
    found = judge(d, within=0.0)
    each = list[tuple[float, float]]()
    for n in range(FIRST, 13):
        sure = 1.0 - 2.0 * threshold(LEVEL) * FIRST / n
        each.append(stats.t.interval(sure, n - 1, np.mean(d[:n]), stats.sem(d[:n])))
    assert found.low == pytest.approx(max(low for low, _ in each))
    assert found.high == pytest.approx(min(high for _, high in each))
    jump = judge([-1.0, -1.1, -0.9, -1.0, *[50.0 + k for k in range(60)]], within=0.0)
    assert jump.low <= jump.high  # also where the looks contradict each other


def test_a_stricter_level_says_less() -> None:
    d = differences(-0.02, 0.01, 5)
    kinds = [judge(d, within=0.0, level=level).kind for level in (0.2, 0.05, 0.01, 0.001)]
    assert kinds[0] == "helps" and kinds[-1] == "undecided"
    assert kinds == sorted(kinds)


@pytest.mark.parametrize("count", range(FIRST))
def test_nothing_is_said_before_the_first_look(count: int) -> None:
    found = judge([-1.0 - k for k in range(count)])
    assert found.kind == "undecided" and found.more >= FIRST - count and found.p == 1.0
    assert best_p([-1.0] * count) == 1.0


def test_equal_runs_and_equal_differences() -> None:
    same = judge([0.0] * FIRST)
    assert (same.kind, same.mean, same.p) == ("same", 0.0, 1.0)
    assert judge([0.0] * FIRST, within=0.0).kind == "undecided"
    shifted = judge([-0.1] * FIRST)
    assert shifted.kind == "helps" and shifted.p == 0.0


def test_no_interval_is_said_to_be_of_100_percent() -> None:
    levels = {0.01: "99 %", 0.002: "99.8 %", 0.0002: "99.98 %", 0.0000034: "99.99966 %", 0.05: "95 %"}
    assert {level: Rules(level=level).interval for level in levels} == {
        level: f"{text} interval" for level, text in levels.items()
    }
