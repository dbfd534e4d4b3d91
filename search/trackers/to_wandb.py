"""Trials as runs of a Weights & Biases project of the study's name; its own variables say where and how
(WANDB_MODE=offline keeps them in HOME/runs/STUDY/wandb for `wandb sync`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.trackers.files import files_of, points_of

TAG_LENGTH = 64  # characters of a tag


class ToWandb:
    """See the head of this file. Raises what wandb raises."""

    def __init__(self, runs: Path):
        import wandb  # pyright: ignore

        self.wandb: Any = wandb
        self.runs = runs

    def log(self, facts: Mapping[str, Any], folder: Path) -> None:
        """One trial; in the same run when it is told again."""
        wandb = self.wandb
        texts = facts["texts"]
        number = facts["number"]
        mark = hashlib.sha256(f"{facts['study']} {number} {facts['began_s']}".encode()).hexdigest()[:12]
        tags = [texts["state"], *texts["techniques"].split(", ")]
        run = wandb.init(
            project=re.sub(r"[^\w.+-]", "-", facts["study"]),
            name=f"#{number}",
            id=f"{number}-{mark}",
            resume="allow",
            dir=str(self.runs),
            tags=[tag[:TAG_LENGTH] for tag in tags if tag],
            config={**facts["settings"], "trial": number},
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True
            ),
        )
        for step, values in points_of(folder):
            run.log(values, step=step)
        beside = {"inactive": facts["inactive"], "findings": facts["findings"]}
        run.summary.update({**facts["figures"], **texts, **{k: v for k, v in beside.items() if v}})
        artifact = wandb.Artifact(f"trial-{number}", type="trial")
        for path in files_of(folder):
            artifact.add_file(str(path))
        run.log_artifact(artifact)
        run.finish(exit_code=1 if texts["state"] == "failed" else 0)
