"""Timing: how long workers and their storage wait for what; the variable CADDIE_TIMING changes it.

`CADDIE_TIMING="heartbeat_s=1 grace_s=4"`: for tests, and for networks that need more patience. All processes
of a study should have the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

VARIABLE = "CADDIE_TIMING"


@dataclass(frozen=True)
class Timing:
    """Seconds, all of them."""

    patience_s: float = 300.0  # an outage of the database that is waited out
    heartbeat_s: int = 10  # a running trial says that it lives
    grace_s: int = 120  # silence after which a running trial counts as dead
    link_s: int = 20  # a TCP link that does not answer for so long is dead


def timing_of(environ: Mapping[str, str]) -> Timing:
    """The defaults, less what CADDIE_TIMING says. Raises ValueError."""
    names = [field.name for field in fields(Timing)]
    given: dict[str, int] = {}
    for word in environ.get(VARIABLE, "").split():
        name, _, value = word.partition("=")
        if name not in names or not value.isdigit() or int(value) == 0:
            raise ValueError(
                f"{VARIABLE} is a list of NAME=SECONDS with whole positive seconds and the names "
                f"{', '.join(names)}, but holds {word!r}. Correct it, or unset it."
            )
        given[name] = int(value)
    timing = Timing(**given)
    if timing.grace_s < 2 * timing.heartbeat_s:
        raise ValueError(
            f"A trial must miss more than one heartbeat before it counts as dead, but {VARIABLE} gives "
            f"grace_s={timing.grace_s} and heartbeat_s={timing.heartbeat_s}. Make grace_s twice that or more."
        )
    return timing
