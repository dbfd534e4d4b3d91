"""compiled(key, patterns): regular expressions with named groups, for logs that are not the challenge's.

The groups say what stands where; any pattern may have any of them:

    bpb loss train_loss                       bits per byte; nats per token, of validation and of training
    step total fraction percent               how far the run is
    train_s train_ms train_min, eval_s …      time so far, of training and of the evaluation
    bytes params label                        of the artifact; parameters; what the score is called
"""

import math
import re
from collections.abc import Mapping, Sequence

TIMES = {"s": 1.0, "ms": 1e-3, "min": 60.0}
GROUPS = (
    *("bpb", "loss", "train_loss", "step", "total", "fraction", "percent"),
    *(f"{what}_{unit}" for what in ("train", "eval") for unit in TIMES),
    *("bytes", "params", "label"),
)
NEEDS = {  # of each key of [trainer], one of these groups
    "score_pattern": ("bpb", "loss"),
    "progress_pattern": ("step", "fraction", "percent"),
    "seconds_pattern": tuple(g for g in GROUPS if g.startswith(("train_", "eval_")) and g != "train_loss"),
}
Found = dict[str, float]


def compiled(key: str, patterns: Sequence[str]) -> list[re.Pattern[str]]:
    """The patterns of one key of [trainer]. ValueError."""
    found = list[re.Pattern[str]]()
    for text in patterns:
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise ValueError(f"`trainer.{key}` is a regular expression, but {error}: {text!r}.") from None
        unknown = [group for group in pattern.groupindex if group not in GROUPS]
        if unknown or not {*NEEDS[key]} & {*pattern.groupindex}:
            raise ValueError(
                f"`trainer.{key}` has named groups, (?P<{NEEDS[key][0]}>…), one of {', '.join(NEEDS[key])}, "
                f"and may have {', '.join(g for g in GROUPS if g not in NEEDS[key])}, but got {text!r}."
            )
        found.append(pattern)
    return found


def seen(pattern: re.Pattern[str], line: str) -> tuple[Found, str] | None:
    """(numbers by group, label) of a line that it matches; times in seconds as `train_s`, `eval_s`, a
    percentage as `fraction`. None where it does not, or where a group is no number."""
    match = pattern.search(line)
    if match is None:
        return None
    texts = {name: text for name, text in match.groupdict().items() if text is not None}
    label = texts.pop("label", "")
    try:
        numbers = {name: float(text.replace(",", "").replace("_", "")) for name, text in texts.items()}
    except ValueError:
        return None
    for what in ("train", "eval"):
        for unit, seconds in TIMES.items():
            if (time := numbers.pop(f"{what}_{unit}", None)) is not None and math.isfinite(time):
                numbers[f"{what}_s"] = numbers.get(f"{what}_s", 0.0) + time * seconds
    if "percent" in numbers:
        numbers["fraction"] = numbers.pop("percent") / 100.0
    return numbers, label


def scored(found: Mapping[str, float]) -> float | None:
    """The score of what was seen: bits per byte, else nats per token."""
    return found.get("bpb", found.get("loss"))
