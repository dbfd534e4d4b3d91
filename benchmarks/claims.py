"""Whether claims keep their error rate: `python -m benchmarks.claims [--quick] [--write]`.

Simulated comparisons: one seed's score varies by 1 sd in each arm, with or without a share that both arms
have in common on a seed. Null: how often "helps" or "hurts" is said where there is nothing, looking after
every pair. Power: how often and after how many seeds of each arm a true effect is told. --write: the tables
in docs/claims.md. Some minutes of one core.
"""

import argparse
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from claims.ablation.ablate import MOST_PAIRS
from claims.sequential import FIRST, LAST, LEVEL, decisions

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "claims.md"
SEEDS = 12  # compare's own number
CONFIRM_SEEDS = 16  # confirm's and ablate's
MOST = 24  # of its table
CONTENDERS = 3  # and how many it takes
CHUNK = 100_000  # comparisons at once
FINER = 10  # as many comparisons for the null, whose rates are small
FEWER = 5  # ablations for a comparison: each has many arms
NOISES = (
    "normal",
    "heavy tails (t, 4 degrees)",
    "two levels of noise",
    "skewed (exponential)",
    "skewed in one arm only",
)
EFFECTS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # sd of one seed
SHARED = (0.0, 0.5, 0.9)  # correlation of the arms on a seed
WIDTHS = (1.0, 1.5, 2.0, 3.0)  # d, in sd of one seed


@dataclass(frozen=True)
class Told:
    """Shares of simulated comparisons."""

    differs: float  # "helps" or "hurts"
    wrong: float  # of those, against the true sign; without an effect: all
    same: float
    mean_seeds: float  # of each arm; undecided ones with all that they had
    most_seeds: float  # that nine of ten need


def noise(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """[studies, seeds] with mean 0 and sd 1."""
    if kind.startswith("heavy"):
        return rng.standard_t(4, shape) / np.sqrt(2.0)
    if kind.startswith("skewed"):
        return rng.exponential(size=shape) - 1.0
    scale = np.where(rng.random(shape) < 0.2, 2.0, 0.5) if kind.startswith("two") else np.ones(shape)
    return rng.standard_normal(shape) * scale / np.sqrt((scale**2).mean())


def simulate(
    kind: str, *, effect: float, shared: float, within: float, seeds: int, studies: int, seed: int = 14
) -> Told:
    """`effect`, `within`: in sd of one seed; the true difference is -effect."""
    rng = np.random.default_rng([seed, seeds, int(100 * effect), int(100 * shared)])
    size = (studies, seeds)
    common = rng.standard_normal(size) * np.sqrt(shared)
    kinds = ("normal" if "one arm" in kind else kind, kind)
    base, new = (common + np.sqrt(1.0 - shared) * noise(own, size, rng) for own in kinds)
    at, sign = decisions(new - effect - base, within=within)
    decided = at >= 0
    used = np.where(decided, at + FIRST, seeds)
    differs = decided & (sign != 0.0)
    return Told(
        differs=float(differs.mean()),
        wrong=float((differs & ((sign > 0.0) | (effect == 0.0))).mean()),
        same=float((decided & (sign == 0.0)).mean()),
        mean_seeds=float(used.mean()),
        most_seeds=float(np.quantile(used, 0.9)),
    )


def null_table(studies: int) -> list[str]:
    rows = ["| noise of a seed | 12 seeds | 64 seeds |", "| --- | ---: | ---: |"]
    for kind in NOISES:
        found = [in_chunks(partial(null_rate, kind, n), FINER * studies) for n in (SEEDS, LAST)]
        rows.append(f"| {kind} | {' | '.join(f'{x:.2%}' for x in found)} |")
    confirmed = [in_chunks(partial(confirm_null, n), FINER * studies) for n in (SEEDS, LAST)]
    rows.append(f"| normal, `confirm` of three: anything | {' | '.join(f'{x:.2%}' for x in confirmed)} |")
    return rows


def in_chunks(rate: Callable[[int, int], float], studies: int) -> float:
    """rate(comparisons, seed) over all of them."""
    sizes = [min(CHUNK, studies - done) for done in range(0, studies, CHUNK)]
    return sum(rate(size, k) * size for k, size in enumerate(sizes)) / studies


def null_rate(kind: str, seeds: int, studies: int, seed: int = 0) -> float:
    """How often "helps" or "hurts" is said where there is no difference."""
    return simulate(
        kind, effect=0.0, shared=0.0, within=0.0, seeds=seeds, studies=studies, seed=14 + 100 * seed
    ).wrong


def confirm_null(seeds: int, studies: int, seed: int = 0, *, contenders: int = CONTENDERS) -> float:
    """How often a confirmation says anything wrong where all its configurations are equal: every pair of
    contenders, and each against the reference, under the level that claims/confirm.py shares out."""
    arms = np.random.default_rng([15, seeds, seed]).standard_normal((contenders + 1, studies, seeds))
    both = list(itertools.combinations(range(contenders + 1), 2))
    wrong = np.zeros(studies, dtype=bool)
    for a, b in both:
        wrong |= decisions(arms[a] - arms[b], within=0.0, level=LEVEL / len(both))[0] >= 0
    return float(wrong.mean())


def power_table(studies: int) -> list[str]:
    rows = [
        "| effect, sd of one seed | arms' correlation | told within 12 seeds | wrong sign | seeds, mean | "
        "seeds of nine in ten |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for effect in EFFECTS:
        for shared in SHARED[: 2 if effect != 3.0 else 3]:
            first = simulate("normal", effect=effect, shared=shared, within=0.0, seeds=SEEDS, studies=studies)
            all_ = simulate("normal", effect=effect, shared=shared, within=0.0, seeds=LAST, studies=studies)
            rows.append(
                f"| {effect:g} | {shared:g} | {first.differs:.1%} | {first.wrong:.2%} | "
                f"{all_.mean_seeds:.1f} | {all_.most_seeds:.0f} |"
            )
    return rows


def confirm_table(studies: int) -> list[str]:
    counts = (FIRST, 8, SEEDS, CONFIRM_SEEDS, MOST)
    rows = [
        f"| effect, sd of one seed | {' | '.join(f'within {n} seeds' for n in counts)} |",
        f"| ---: | {' | '.join('---:' for _ in counts)} |",
    ]
    for effect in EFFECTS:
        told = confirm_told(effect, studies)
        rows.append(f"| {effect:g} | {' | '.join(f'{told[n]:.1%}' for n in counts)} |")
    return rows


def confirm_told(effect: float, studies: int) -> dict[int, float]:
    """seeds -> how often a contender's effect against the reference is told within them, under its share
    of the level."""
    level = LEVEL / math.comb(CONTENDERS + 1, 2)
    base, new = np.random.default_rng([16, int(100 * effect)]).standard_normal((2, studies, MOST))
    at, sign = decisions(new - effect - base, within=0.0, level=level)
    return {n: float(((at >= 0) & (at + FIRST <= n) & (sign < 0.0)).mean()) for n in range(FIRST, MOST + 1)}


@dataclass(frozen=True)
class Taken:
    """Shares of simulated ablations."""

    any_word: float  # with a "helps", "hurts", "overlap" or "reinforce"
    told: float  # of single effects


def simulate_ablation(
    techniques: int, *, effect: float, seeds: int, studies: int, shared: float = 0.0
) -> Taken:
    """`techniques` taken away one by one, all of the same true effect, in sd of one seed, with a reference
    whose score and model are no better; the MOST_PAIRS pairs of the largest products of what was seen, on the
    same seeds, their interactions 0. `shared`: correlation of all arms on a seed."""
    rng = np.random.default_rng([17, techniques, seeds, int(100 * effect), int(100 * shared)])
    size = (studies, seeds)
    common = rng.standard_normal(size) * np.sqrt(shared)

    def arm(mean: float) -> np.ndarray:
        return common + mean + np.sqrt(1.0 - shared) * rng.standard_normal(size)

    base = arm(0.0)
    without = np.array([arm(effect) for _ in range(techniques)])
    possible = list(itertools.combinations(range(techniques), 2))
    told = np.array([decisions(a - base, within=0.0, level=LEVEL / 2 / techniques)[0] >= 0 for a in without])
    rest = LEVEL / 2 / (len(possible) + 2)
    wrong = np.zeros(studies, dtype=bool) if effect else told.any(0)
    for figure in (base, arm(0.0)):  # the score, the model
        wrong |= decisions(figure - arm(0.0), within=0.0, level=rest)[0] >= 0
    means = (without - base).mean(-1)  # [techniques, studies]
    products = np.array([-np.abs(means[i] * means[j]) for i, j in possible]).reshape(len(possible), studies)
    for rank in np.argsort(products, axis=0)[:MOST_PAIRS]:
        one, other = np.array(possible)[rank].T
        at = np.arange(studies)
        inner = base - without[one, at] - without[other, at] + arm(2.0 * effect)
        wrong |= decisions(inner, within=0.0, level=rest)[0] >= 0
    return Taken(float(wrong.mean()), float(told.mean()))


def ablate_table(comparisons: int) -> list[str]:
    studies = max(1, comparisons // FEWER)
    counts = (CONFIRM_SEEDS, MOST)
    heads = [f"effect {e:g}: within {n}" for e in (2.0, 3.0, 4.0) for n in counts]
    rows = [
        f"| techniques | no effect: any word, {CONFIRM_SEEDS} seeds | {LAST} seeds | {' | '.join(heads)} |",
        f"| ---: | {' | '.join('---:' for _ in range(2 + len(heads)))} |",
    ]
    for techniques in (3, 6, 12):
        null = [
            simulate_ablation(techniques, effect=0.0, seeds=n, studies=studies).any_word
            for n in (CONFIRM_SEEDS, LAST)
        ]
        power = [
            simulate_ablation(techniques, effect=e, seeds=n, studies=studies // 10).told
            for e in (2.0, 3.0, 4.0)
            for n in counts
        ]
        cells = [*(f"{x:.2%}" for x in null), *(f"{x:.1%}" for x in power)]
        rows.append(f"| {techniques} | {' | '.join(cells)} |")
    return rows


def same_table(studies: int) -> list[str]:
    rows = [
        "| d, sd of one seed | effect 0: told within 12 | within 64 | effect d: told (wrongly) within 64 |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for within in WIDTHS:
        none = [
            simulate("normal", effect=0.0, shared=0.0, within=within, seeds=n, studies=studies)
            for n in (SEEDS, LAST)
        ]
        edge = simulate("normal", effect=within, shared=0.0, within=within, seeds=LAST, studies=studies)
        rows.append(f"| {within:g} | {none[0].same:.1%} | {none[1].same:.1%} | {edge.same:.1%} |")
    return rows


def tables(studies: int) -> dict[str, str]:
    makers = {
        "null": null_table,
        "power": power_table,
        "same": same_table,
        "confirm": confirm_table,
        "ablate": ablate_table,
    }
    return {name: "\n".join(make(studies)) for name, make in makers.items()}


def put(text: str, made: dict[str, str]) -> str:
    """The page with each table between its two marks replaced."""
    for name, table in made.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
        text, count = mark.subn(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
        assert count == 1, name
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=100_000, help="simulated comparisons a cell")
    parser.add_argument("--quick", action="store_true", help="2,000 of them: some seconds")
    parser.add_argument("--write", action="store_true", help=f"the tables into {DOCUMENT.name}")
    options = parser.parse_args()
    made = tables(2000 if options.quick else options.studies)
    print(f"level {LEVEL}, looks after {FIRST} to {LAST} pairs\n")
    print("\n\n".join(made.values()))
    if options.write:
        DOCUMENT.write_text(put(DOCUMENT.read_text(encoding="utf-8"), made), encoding="utf-8")


if __name__ == "__main__":
    main()
