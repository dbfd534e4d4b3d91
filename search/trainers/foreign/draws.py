"""draws(foreign, count): settings of a script at random, each active one uniform on its scale.
narrowings(found, foreign): what its own checks take out of a draft's space."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from readers.checks import Check
from readers.scan import Scan
from search.study.foreign import Foreign, Value, Variable
from techniques.base import Choice, Float

SAMPLE = 400  # draws that are held against the checks
MOST_VALUES = 256  # of a whole number that are tried one by one


@dataclass(frozen=True)
class Narrowing:
    """What stays of a setting: some values, or a range, or (neither given) its default alone; and why."""

    values: tuple[Value, ...]
    reason: str
    between: tuple[float, float] | None = None
    log: bool = False

    def some(self) -> tuple[Value, ...]:
        """Values that stay: all, or the ends of the range."""
        return self.between or self.values


def draws(foreign: Foreign, count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """`count` of them; the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        picked: dict[str, Any] = {}
        for name, variable in foreign.variables.items():
            parent, accepted = variable.when or ("", ())
            if not parent or (parent in picked and picked[parent] in accepted):
                picked[name] = _at_random(variable, rng)
        yield picked


def _at_random(variable: Variable, rng: random.Random) -> Any:
    domain = variable.domain
    if isinstance(domain, Choice):
        return rng.choice(domain.options)
    low, high = float(domain.low), float(domain.high)
    value = low * (high / low) ** rng.random() if domain.log else rng.uniform(low, high)
    if isinstance(domain, Float):
        return min(max(value, low), high)
    steps = round((value - low) / domain.step)
    return int(low) + min(steps, int((high - low) // domain.step)) * domain.step


def defaults_of(found: Scan) -> dict[str, Any]:
    return {name: read.default for name, read in found.reads.items() if read.default is not None}


def narrowings(found: Scan, foreign: Foreign) -> dict[str, Narrowing]:
    """By setting: what the script's checks leave of it. One setting alone keeps the values that pass; of
    several that clash, those stay at their default whose change breaks most draws."""
    defaults = defaults_of(found)
    sample: list[dict[str, Any]] = [defaults | draw for draw in draws(foreign, SAMPLE)]
    narrowed = dict[str, Narrowing]()
    for check in found.checks:
        reason = f"line {check.line} forbids some values"
        broken = [values for values in sample if check.forbids(values)]
        while broken:
            free = sorted(check.settings & foreign.variables.keys() - narrowed.keys())
            if not free:
                break
            left: dict[str, list[dict[str, Any]]] = {
                n: [v for v in broken if check.forbids(v | {n: defaults.get(n)})] for n in free
            }
            worst = min(free, key=lambda n: len(left[n]))
            kept = _that_pass(check, foreign.variables[worst], defaults, reason)
            if kept and not any(check.forbids(v | {worst: end}) for v in broken for end in kept.some()):
                narrowed[worst] = kept
                break
            narrowed[worst] = Narrowing((), reason)
            broken = [values | {worst: defaults.get(worst)} for values in left[worst]]
            sample = [values | {worst: defaults.get(worst)} for values in sample]
    return narrowed


def _that_pass(
    check: Check, variable: Variable, defaults: Mapping[str, Any], reason: str
) -> Narrowing | None:
    """What passes of a setting, with all others at their defaults: values, or of a real number the stretch
    around its default; None where nothing is left to choose."""
    domain, name = variable.domain, variable.name

    def passes(value: Any) -> bool:
        return not check.forbids({**defaults, name: value})

    if isinstance(domain, Float):
        ends = [_last_that(passes, float(defaults[name]), end) for end in (domain.low, domain.high)]
        between = (ends[0], ends[1])
        return Narrowing((), reason, between, domain.log) if between[0] < between[1] else None
    values = domain.options if isinstance(domain, Choice) else range(int(domain.low), int(domain.high) + 1)
    kept = tuple(value for value in values[:MOST_VALUES] if passes(value))
    return Narrowing(kept, reason) if len(kept) > 1 and len(values) <= MOST_VALUES else None


def _last_that(passes: Callable[[float], bool], inside: float, end: float) -> float:
    """The farthest value from `inside` towards `end` that passes, to 5 parts in a million."""
    if passes(end):
        return end
    for _ in range(40):
        middle = (inside + end) / 2.0
        inside, end = (middle, end) if passes(middle) else (inside, middle)
    near = (f"{inside:.6g}", f"{inside * (1.0 - 1e-6):.7g}", f"{inside * (1.0 + 1e-6):.7g}")
    return next(filter(passes, map(float, near)), inside)
