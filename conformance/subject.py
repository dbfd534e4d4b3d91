"""One technique on the bench under one choice of its settings: what every check is given."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from conformance.lab import SHORT, Finished, Lab, NotApplicable, executed, smoke_settings
from techniques.base import Choice, Technique, claims
from techniques.config import Resolved

MODEL_SEAMS = (
    "sizes",
    "embed_in",
    "embed_out",
    "shared",
    "values",
    "norm",
    "rope",
    "attend",
    "attn_out",
    "activation",
    "mlp",
    "residual",
    "skip",
    "plan",
    "block_out",
    "cap",
    "cross_entropy",
    "loss_terms",
    "weight",
)


class Subject:
    """One technique on the bench, under one choice of its settings."""

    def __init__(
        self,
        lab: Lab,
        cls: type[Technique],
        *,
        known: Mapping[str, type[Technique]],
        changes: Mapping[str, Any] | None = None,
    ):
        self.lab, self.cls, self.name = lab, cls, cls.name
        self.known = {**known, cls.name: cls}
        self.changes = dict(changes or {})
        self.settings = smoke_settings(cls, self.known, self.changes)
        self._run: Finished | None = None
        self._failed = False
        self.files: set[str] = set()  # whose functions the whole run called
        self.scores: dict[tuple[str, int, bytes], Any] = {}  # (settings, rows, tokens) -> how its scorer did

    def resolve(self, **trainer: Any) -> Resolved:
        return self.lab.resolve(self.settings, self.known, **trainer)

    def without(self, **trainer: Any) -> Resolved:
        """The same settings with this technique off; what it requires stays on."""
        own = {k for k in self.settings if k.partition(".")[0] == self.name}
        return self.lab.resolve(
            {k: v for k, v in self.settings.items() if k not in own} | {self.name: False},
            self.known,
            **trainer,
        )

    @functools.cached_property
    def resolved(self) -> Resolved:
        return self.resolve()

    @property
    def technique(self) -> Technique:
        return self.resolved.techniques[self.name]

    def enters(self, *seams: str) -> bool:
        return any(seam in claims(self.cls) for seam in seams)

    def require_model_seam(self) -> None:
        if not self.enters(*MODEL_SEAMS):
            raise NotApplicable("it enters no model seam")

    def run(self) -> Finished:
        """The whole run, made once; after a failure whatever needs it does not apply."""
        if self._failed:
            raise NotApplicable("the run did not finish")
        if self._run is None:
            self._failed = True
            with executed(self.files):
                self._run = self.lab.finish(self.lab.train(self.resolved))
            self._failed = False
        return self._run

    @functools.cached_property
    def short_run(self) -> Finished:
        """A few steps without warm-up."""
        return self.lab.train(self.resolve(**SHORT))

    @property
    def short(self) -> list[float]:
        """Their losses."""
        return self.short_run.losses

    @property
    def has_finished(self) -> bool:
        return self._run is not None

    @functools.cached_property
    def variants(self) -> list[tuple[str, Subject]]:
        """Itself, and one subject for every other option of each setting that names variants of the maths."""
        found: list[tuple[str, Subject]] = [("", self)]
        for key, domain in self.cls.space.items():
            if isinstance(domain, Choice):
                now = getattr(self.technique.config, key)
                for option in domain.options:
                    if isinstance(option, str | bool) and option != now:
                        changes = {**self.changes, key: option}
                        other = Subject(self.lab, self.cls, known=self.known, changes=changes)
                        found.append((f"{key}={option}: ", other))
        return found
