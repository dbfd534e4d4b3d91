"""trial_note(facts, limits) -> str: a trial as Markdown, for its page; its first line says how it ended."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from search.common import attributes
from search.study.limits import Limit, Limits

ACTIVE = "active"
VAL_BPB = "val_bpb"
MARKUP = re.compile(r"([\\`*<>|$\[\]])")
FINISHED = "finished"


def trial_note(facts: Mapping[str, Any], limits: Limits) -> str:
    """`facts` by the names of stored attributes, and `val_bpb` (bits per byte)."""
    parts = [f"**{plain(headline(facts, limits))}**"]
    if facts.get(attributes.OUTCOME) == FINISHED:
        rows = [("val_bpb, bits per byte", f"{facts[VAL_BPB]:.4f}", "")]
        rows += [_row(limit, facts.get(limit.figure), limits.of(limit)) for limit in limits.given]
        parts += [table(("", "measured", "limit"), rows)]
    if on := facts.get(attributes.TECHNIQUES):
        parts += [table(("audit", "techniques"), audit_rows(facts, on))]
    parts += [f"**finding**: {plain(str(text))}" for text in facts.get(attributes.FINDINGS) or ()]
    if links := facts.get(attributes.BPB_CHAIN):
        parts += [f"BPB chain, on the tokens of a report: {plain(chain_text(links))}"]
    parts += [f"legality: {plain(str(facts.get(attributes.LEGALITY, 'not known')))}"]
    return "\n\n".join(parts)


def headline(facts: Mapping[str, Any], limits: Limits) -> str:
    """over a limit: evaluation 4.2 s of 3.0; or the score, or why there is none."""
    outcome = str(facts.get(attributes.OUTCOME))
    if outcome != FINISHED:
        reason = facts.get(attributes.REASON)
        return f"{outcome}: {reason}" if reason else outcome
    given = [(limit, facts.get(limit.figure), limits.of(limit)) for limit in limits.given]
    if over := [limit.excess(figure, most) for limit, figure, most in given if figure and figure > most]:
        return f"over a limit: {'; '.join(over)}"
    return f"{facts[VAL_BPB]:.4f} bits per byte, within all limits"


def audit_rows(facts: Mapping[str, Any], on: Sequence[str]) -> list[tuple[str, str]]:
    """(verdict, techniques) of the trainer's audit: what changed nothing first."""
    verdicts = facts.get(attributes.INACTIVE) or {}
    judged = ACTIVE if facts.get(attributes.OUTCOME) == FINISHED else "not judged"
    found: dict[str, list[str]] = {}
    for name in sorted(on, key=lambda name: name not in verdicts):
        found.setdefault(str(verdicts.get(name, judged)), []).append(name)
    return [(verdict, ", ".join(names)) for verdict, names in found.items()]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return MARKUP.sub(r"\\\1", " ".join(text.split()))


def chain_text(links: Iterable[tuple[str, float]]) -> str:
    """weights 2.6104, ema 2.5871 (-0.0233), packed 2.6012 (+0.0141), sliding_window 2.5833 (-0.0179)."""
    before: float | None = None
    told: list[str] = []
    for name, bpb in links:
        told.append(f"{name} {bpb:.4f}" + ("" if before is None else f" ({bpb - before:+.4f})"))
        before = bpb
    return ", ".join(told)


def _row(limit: Limit, figure: float | None, most: float) -> tuple[str, str, str]:
    found = "not known" if figure is None else limit.measured(figure)
    return f"{limit.label}, {limit.unit}", found, limit.allowed(most)
