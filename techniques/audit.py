"""The activity audit: what each technique of a run really changed. A flag that did nothing says so. No torch
here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Audit:
    """Facts per technique, noted where they happen; `changed` facts decide the verdict."""

    def __init__(self, names: Iterable[str]):
        self.facts: dict[str, dict[str, Any]] = {name: {} for name in names}
        self.changes: dict[str, dict[str, bool]] = {name: {} for name in names}

    def note(self, name: str, **facts: Any) -> None:
        """Keep figures: parameters added, tensors and elements touched, bytes, ms/step, seconds."""
        self.facts[name].update(facts)

    def changed(self, name: str, what: str, did: bool) -> None:
        """Whether the technique changed `what` (the loss, the weights, the payload, the score…) in this
        run."""
        self.changes[name][what] = did

    def report(self) -> dict[str, dict[str, Any]]:
        """name -> {verdict: "active" | "inactive: reason", **facts}."""
        out: dict[str, dict[str, Any]] = {}
        for name, facts in self.facts.items():
            changes = self.changes[name]
            if any(changes.values()):
                verdict = "active"
            elif changes:
                verdict = f"inactive: {', '.join(changes)} did not change"
            else:
                verdict = "inactive: the run never reached it"
            out[name] = {"verdict": verdict, **{f"changed_{k}": v for k, v in changes.items()}, **facts}
        return out
