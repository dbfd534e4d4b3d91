"""What a trial costs beside the trainer's work: measured by its worker, told by `status`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from search.trainers.process import Outcome


@dataclass
class Clock:
    """Seconds of one trial that are not the trainer's work."""

    told_at: float = field(default_factory=time.perf_counter)  # when the trial before was done with
    finished_at: float = 0.0  # when its objective returned
    tell_s: float = 0.0
    ask_s: float = 0.0
    sample_s: float = 0.0
    store_s: float = 0.0

    def summary(self, outcome: Outcome) -> dict[str, float]:
        """What is kept as `overhead`; the tell is the one of the trial before: its own is still to come."""
        true_s = float((outcome.result or {}).get("true_seconds") or 0.0)
        start_s = max(0.0, outcome.process_s - true_s) if true_s else 0.0
        parts = {
            "ask_s": self.ask_s,
            "sample_s": self.sample_s,
            "start_s": start_s,
            "report_s": outcome.report_s,
            "store_s": self.store_s,
            "tell_before_s": self.tell_s,
        }
        overhead_s = sum(parts.values())
        whole_s = overhead_s - start_s - outcome.report_s + outcome.process_s
        shown = {name: round(seconds, 4) for name, seconds in parts.items()}
        return shown | {"process_s": round(outcome.process_s, 3), "share": round(overhead_s / whole_s, 4)}
