"""The techniques of one run at their seams: who enters which, in chain order, and what each changed there.

What a technique makes of a value, or of the baseline's part, is noted in the audit under the word that the
seam declares (techniques/parts.py). Seams of every step are noted once, by `note_steps`: did a technique
change any of them?
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from techniques.base import SEAMS, Technique, claims
from techniques.config import Resolved
from techniques.parts import Codec
from trainer.artifact import Packed, Remembering, ZlibCodec, round_to_nearest
from trainer.audit import Audit
from trainer.ledger import Ledger

Value = TypeVar("Value")


class Seams:
    """A run's settings, its techniques, the audit of what they change, the ledger of what they read."""

    def __init__(self, resolved: Resolved, audit: Audit | None = None):
        self.resolved, self.techniques = resolved, resolved.techniques
        self.audit = Audit(resolved.techniques) if audit is None else audit
        self.ledger = Ledger()  # of the world, once there is one
        self.steps: dict[tuple[str, str], bool] = {}  # (technique, seam of every step) -> changed one of them
        self.at_work = ""  # the technique that a chain has come to
        self.made: dict[bytes, bytes] = {}  # a container's hash -> what the codec made of it

    # -- who enters ----------------------------------------------------------------------------------------

    def entering(self, seam: str) -> list[Technique]:
        """The techniques at a seam, in chain order."""
        return [t for t in self.techniques.values() if seam in claims(t)]

    def owner(self, slot: str) -> Technique | None:
        """The technique that fills a slot."""
        return self.resolved.owner(slot)

    def name(self, slot: str, otherwise: str) -> str:
        owner = self.owner(slot)
        return owner.name if owner else otherwise

    def check_late_stages(self, num_positions: int) -> None:
        """What only a stage behind the training would refuse (so few scored positions, a missing package) is
        refused now. Raises Unavailable."""
        for technique in self.techniques.values():
            technique.check_data(num_positions)
        for slot in ("quantizer", "codec", "scorer"):
            self.slot(slot, lambda: None)

    # -- what they give ------------------------------------------------------------------------------------

    def slot(self, slot: str, baseline: Callable[..., Value], *args: Any) -> Value:
        """What the slot's technique gives for `args`, or the baseline does."""
        owner = self.owner(slot)
        return getattr(owner, slot)(*args) if owner else baseline(*args)

    def chain(
        self,
        seam: str,
        value: Value,
        *rest: Any,
        differ: Callable[[Value, Value], bool | int] = operator.ne,
        noun: str = "",
    ) -> Value:
        """`value` after every technique at the seam. `differ` says of each whether, or in how many `noun`s,
        it gave another value than it got."""
        for technique in self.entering(seam):
            self.at_work = technique.name
            before, value = value, getattr(technique, seam)(value, *rest)
            count = differ(before, value)
            self.changed(technique, seam, bool(count), **({noun: count} if noun else {}))
        return value

    def codec(self) -> Codec:
        """What a search for bytes has packed is not packed again."""
        return Remembering(self.slot("codec", ZlibCodec), self.made)

    def bits(self, role: str) -> int:
        """Bits per stored weight of a role: 8, unless a technique says otherwise."""
        return self.slot("bits", lambda _role: None, role) or 8

    # -- what they changed ---------------------------------------------------------------------------------

    def changed(self, technique: Technique | None, seam: str, did: bool, **facts: Any) -> None:
        """Whether the technique changed what the seam declares, and figures; nothing where there is none."""
        if technique is None:
            return
        if SEAMS[seam].every_step:
            key = technique.name, seam
            self.steps[key] = self.steps.get(key, False) or did
        else:
            self.audit.changed(technique.name, SEAMS[seam].changes, did)
        self.audit.note(technique.name, **facts)

    def filled(self, slot: str, did: bool, **facts: Any) -> None:
        """The same of whoever fills a slot."""
        self.changed(self.owner(slot), slot, did, **facts)

    def note(self, **facts: Any) -> None:
        """Figures of the technique that is at work in a chain."""
        self.audit.note(self.at_work, **facts)

    def note_rounding(
        self, weights: Mapping[str, Tensor], bits: Mapping[str, int], packed: Iterable[Packed]
    ) -> None:
        """In how many tensors whoever fills a slot of the rounding made another of it than the baseline."""
        touched = {"bits": 0, "row_scale": 0, "quantizer": 0}
        for item in packed if any(self.owner(slot) for slot in touched) else ():
            if item.scale is not None:
                q, scale = round_to_nearest(weights[item.name], bits[item.name])
                touched["bits"] += bits[item.name] != 8
                touched["row_scale"] += not torch.equal(item.scale, scale)
                touched["quantizer"] += not (torch.equal(item.q, q) and torch.equal(item.scale, scale))
        for slot, tensors in touched.items():
            self.filled(slot, tensors > 0, tensors=tensors)

    def note_of(self, slot: str, **facts: Any) -> None:
        """Figures of whoever fills a slot."""
        if owner := self.owner(slot):
            self.audit.note(owner.name, **facts)

    def forget_steps(self) -> None:
        """What was changed so far was no step of the run."""
        self.steps = {}

    def note_steps(self) -> None:
        """The steps are over: the audit learns who changed any of them."""
        for (name, seam), did in self.steps.items():
            self.audit.changed(name, SEAMS[seam].changes, did)
