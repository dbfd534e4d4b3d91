"""The activity audit: what each technique of a run really changed. A flag that did nothing says so. No torch
here.

A result's `findings` are of two kinds. Those of the rules take `record_legal` away: every one of the ledger
(a read that is forbidden, untimed or past the training budget; a weight that moved in a report or beside the
timed steps; a position that was trained on before it was scored) and every one of `implausible` (a score that
the training cannot explain is taken for a leak until somebody finds its cause). Those of quality do not: what
Audit.findings tells (a quantiser's scales or errors, an average that is worse than the last weights) and a
run that could not be compiled make a worse or a slower submission, not another one than the rules allow.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

AVERAGE_WORSE_NATS = 0.1  # averages of the records stand within 0.02 nats of the last weights
# How much better than the training loss a score may be. The best legal ways of scoring gave 3 % together
# (sliding windows 2 to 2.6 %, test-time training 0.2 to 1.3 %); training on the test set gave 6 % (#518, 50
# epochs), fitting scored targets 17 % (#1263), a leak 70 % and more (#1091).
SCORING_GAIN = 0.10
TOKEN_SPREAD_NATS = 4.0  # a token's nats spread by about 2; doubled, because neighbours are alike


def implausible(result: Mapping[str, Any], train_tokens: int) -> list[str]:
    """Why the training loss `train_nats` (a token, of a batch of `train_tokens`) cannot explain `val_bpb`, if
    it cannot. The loss in bits per byte, less SCORING_GAIN, less three standard errors of both samples, is
    the least that is believed."""
    if "val_bpb" not in result:
        return []
    val_bpb, train_nats = result["val_bpb"], result["train_nats"]
    bits = result["val_tokens"] / result["val_bytes"] / math.log(2)  # per byte, of a nat per token
    noise = TOKEN_SPREAD_NATS * math.sqrt(1 / train_tokens + 1 / result["val_tokens"])
    least = bits * ((1 - SCORING_GAIN) * train_nats - 3 * noise)
    if val_bpb >= least:
        return []
    return [
        f"plausibility: val_bpb is {val_bpb:.4f}, but the training loss of {train_nats:.4f} nats is "
        f"{bits * train_nats:.4f} bits per byte and explains nothing below {least:.4f}"
    ]


class Audit:
    """Facts per technique, noted where they happen; `changed` facts decide the verdict."""

    def __init__(self, names: Iterable[str]):
        self.facts: dict[str, dict[str, Any]] = {name: {} for name in names}
        self.changes: dict[str, dict[str, bool]] = {name: {} for name in names}
        self.links: dict[str, float] = {}
        self.attempts: dict[int, Any] = {}

    def link(self, what: str, val_bpb: float) -> None:
        """The BPB chain: bits per byte, on the tokens of a report, of the last weights, their average, the
        packed model (these three scored plainly) and a scorer that is another, in this order."""
        self.links[what] = val_bpb

    def note(self, name: str, **facts: Any) -> None:
        """Keep figures: parameters added, tensors and elements touched, bytes, ms/step, seconds."""
        self.facts[name].update(facts)

    def changed(self, name: str, what: str, did: bool) -> None:
        """Whether the technique changed `what` (the loss, the weights, the payload, the score…) in this
        run."""
        self.changes[name][what] = did

    def keep(self, attempt: int) -> None:
        """What is noted so far is of this attempt, one of several."""
        self.attempts[attempt] = copy.deepcopy((self.facts, self.changes))

    def back_to(self, attempt: int) -> None:
        """This attempt is the one that is submitted: what later ones noted is gone."""
        self.facts, self.changes = self.attempts[attempt]
        self.attempts = {}

    def averaged(self, name: str, last: float, mean: float) -> None:
        """The training loss of the last weights and of the average that is exported, nats per token."""
        self.note(name, train_loss_last=last, train_loss_average=mean)
        if mean > last + AVERAGE_WORSE_NATS:
            told = f"the exported average has a training loss of {mean:.4f} nats, the last weights {last:.4f}"
            self.note(name, finding=f"{told}: its horizon is too long for this run")

    def findings(self) -> list[str]:
        """What a person should look at, `technique: what`."""
        found: list[str] = []
        for name, facts in self.facts.items():
            rows, ratio = facts.get("rows_at_floor", 0), facts.get("worst_hessian_error_over_rounding", 0.0)
            if facts.get("finding"):
                found.append(f"{name}: {facts['finding']}")
            if rows:
                found.append(f"{name}: {rows:,} rows stand at the scale floor, where no clip search acts")
            if facts.get("adapted") == 0:
                found.append(f"{name}: it adapted to nothing, so its scores are those of the model as it is")
            if ratio > 1:
                found.append(f"{name}: a tensor's output error is {ratio:.3f} times that of plain rounding")
        return found

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        return {"facts": self.facts, "changes": self.changes, "links": list(self.links.items())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """What an earlier process noted of the stages that it finished."""
        for name in self.facts:
            self.facts[name] |= state["facts"].get(name, {})
            self.changes[name] |= state["changes"].get(name, {})
        self.links |= dict(state.get("links", ()))

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
