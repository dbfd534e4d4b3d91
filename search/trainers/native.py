"""NativeTrainer: train_gpt.py, or another script that keeps its contract: config.json in, result.json out."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.common.paths import ROOT, shown
from search.study.model import Study
from techniques import catalog
from techniques.config import Resolved
from techniques.published import environment_names

TRAINER = (sys.executable, str(ROOT / "train_gpt.py"))


def trainer_command(num_ranks: int) -> tuple[str, ...]:
    """The trainer as one process, or as `num_ranks` of them under torchrun."""
    if num_ranks == 1:
        return TRAINER
    run = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}")
    return (TRAINER[0], *run, *TRAINER[1:])


@dataclass(frozen=True)
class NativeTrainer:
    """search/trainers/trainer.py says what each part means."""

    study: Study
    script: Path | None = None  # another trainer of the same contract

    predicts_costs = True
    keeps_stages = True

    @property
    def built_in(self) -> bool:
        return self.script is None

    @property
    def has_baseline(self) -> bool:
        return self.built_in

    @property
    def start(self) -> str:
        return f"preset {self.study.preset}"

    def check(self) -> None:
        if self.script is None or not self.script.is_file():
            return
        if "result.json" not in self.script.read_text(encoding="utf-8", errors="replace"):
            raise ValueError(
                f"A trainer under {self.study.path} takes config.json and writes result.json "
                f"(docs/contracts.md), but {self.script} never mentions it. If it takes environment "
                f"variables, draft a study for it: python search.py scan {self.script} --out theirs.toml, "
                "and give that as --study."
            )

    def command(self) -> tuple[str, ...]:
        if self.script is not None:
            return (TRAINER[0], str(self.script.resolve()))
        return trainer_command(self.study.gpus_per_trial)

    def code_files(self) -> list[Path]:
        if self.script is not None:
            return [self.script]
        return sorted({*catalog.shared_files(ROOT), *catalog.technique_files().values()})

    def hidden(self) -> set[str]:
        return environment_names(catalog.metadata())

    def complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return dict(config)

    def time_budget(self) -> str:
        name = "max_wallclock_seconds"
        return name if float(self.study.settled(name) or 0.0) > 0.0 else ""

    def legality(self, resolved: Resolved) -> str:
        verdicts = {name: t.verdict().verdict.value for name, t in resolved.techniques.items()}
        odd = [f"{name}: {verdict}" for name, verdict in verdicts.items() if verdict != "legal"]
        return ", ".join(odd) or "legal"

    def repeat_line(self, config: Mapping[str, Any], path: Path) -> str:
        if not path.exists():  # it ran on another machine
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        return f"python train_gpt.py {shlex.quote(str(shown(path)))}"

    def no_bundle(self, number: int) -> str:
        return ""
