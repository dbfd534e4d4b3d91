"""trainer_of(study, script) -> Trainer: what a study runs, and all that differs between our trainer, another
script of its contract (`--trainer`) and somebody else's script ([trainer] of the study).

Chosen here and nowhere else; a session keeps it (search/session/session.py).
NativeTrainer: train_gpt.py, or another script that keeps its contract: config.json in, result.json out.
"""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from search.common.paths import ROOT, shown
from search.study.model import Study
from search.trainers.foreign.run import ForeignTrainer
from techniques import catalog
from techniques.config import Resolved
from techniques.unanswered import environment_names

TRAINER = (sys.executable, str(ROOT / "train_gpt.py"))


class Trainer(Protocol):
    """A study's trainer, and what a search of it needs to know."""

    @property
    def built_in(self) -> bool: ...  # our own train_gpt.py: it reads our corpus, its studies share costs
    @property
    def has_baseline(self) -> bool: ...  # the study's starting point is measured before the first trial
    @property
    def start(self) -> str: ...  # the starting point in words
    @property
    def predicts_costs(self) -> bool: ...  # bytes and seconds of a configuration can be told before it runs
    @property
    def keeps_stages(self) -> bool: ...  # finished stages of one run can serve another

    def check(self) -> None: ...  # ValueError when it cannot be started
    def doubts(self) -> str: ...  # what may be wrong with its study, told with the baseline; "": nothing
    def command(self) -> tuple[str, ...]: ...  # of its process; config.json and --out_dir come behind it
    def code_files(self) -> list[Path]: ...  # the files whose text is the objective
    def hidden(self) -> set[str]: ...  # the variables that it reads: no run may see the shell's
    def complete(self, config: Mapping[str, Any]) -> dict[str, Any]: ...  # config.json, from the space's part
    # a configuration and its run (config.json, what the space resolved it to) on another seed
    def seeded(self, config: Mapping[str, Any], resolved: Any, seed: int) -> tuple[dict[str, Any], Any]: ...
    def time_budget(self) -> str: ...  # the setting that gives runs a time, not a number of steps; else ""
    def legality(self, resolved: Any) -> str: ...  # what the rules say of a run of it
    # a shell line that runs a stored configuration again; `path` is where its config.json belongs
    def repeat_line(self, config: Mapping[str, Any], path: Path) -> str: ...
    def no_bundle(self, number: int) -> str: ...  # why the trial is not exported as one file; "": it can be


def trainer_of(study: Study, script: Path | None = None) -> Trainer:
    """The trainer of a study; `script` (`--trainer`) is run instead of the one that it names."""
    if study.foreign is None:
        return NativeTrainer(study, script)
    return ForeignTrainer(study, study.foreign.found(script))


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

    has_baseline = built_in

    @property
    def start(self) -> str:
        return f"preset {self.study.preset}"

    def check(self) -> None:
        if self.script is None:
            return
        if not self.script.is_file():
            raise ValueError(f"--trainer names a script, but {self.script} is no file. Correct the path.")
        if "result.json" not in self.script.read_text(encoding="utf-8", errors="replace"):
            raise ValueError(
                f"A trainer under {self.study.path} takes config.json and writes result.json "
                f"(docs/contracts.md), but {self.script} never mentions it. If it takes environment "
                f"variables, draft a study for it: python search.py scan {self.script} --out theirs.toml, "
                "and give that as --study."
            )

    def doubts(self) -> str:
        return ""

    def command(self) -> tuple[str, ...]:
        if self.script is not None:
            return (TRAINER[0], str(self.script.resolve()))
        return trainer_command(self.study.gpus_per_trial)

    def code_files(self) -> list[Path]:
        if self.script is not None:
            return [self.script]
        shared = {*catalog.shared_files(ROOT), *ROOT.glob("bundle/*.py")}
        return sorted(shared | {*catalog.technique_files().values()})

    def hidden(self) -> set[str]:
        return environment_names(catalog.metadata(), os.environ)

    def complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return dict(config)

    def seeded(
        self, config: Mapping[str, Any], resolved: Resolved, seed: int
    ) -> tuple[dict[str, Any], Resolved]:
        values = {**resolved.values, "seed": seed}
        own = replace(resolved, config=replace(resolved.config, seed=seed), values=values)
        return {**config, "seed": seed}, own

    def time_budget(self) -> str:
        name = "max_wallclock_seconds"
        return name if float(self.study.settled(name) or 0.0) > 0.0 else ""

    def legality(self, resolved: Resolved) -> str:
        return legality_of(resolved)

    def repeat_line(self, config: Mapping[str, Any], path: Path) -> str:
        if not path.exists():  # it ran on another machine
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        file = shlex.quote(str(shown(path)))
        if self.script is None:
            return f"python train_gpt.py {file}"
        script, out = (shlex.quote(str(shown(p))) for p in (self.script.resolve(), path.parent / "again"))
        return f"python {script} {file} --out_dir {out}"

    def no_bundle(self, number: int) -> str:
        if self.script is None:
            return ""
        return f"A bundle is made of this trainer's files, but trial {number} ran {self.script}. Submit that."


def legality_of(resolved: Resolved) -> str:
    """legal, or what is not: `token_tilt: legal-if-timed`."""
    verdicts = {name: t.verdict().verdict.value for name, t in resolved.techniques.items()}
    odd = [f"{name}: {verdict}" for name, verdict in verdicts.items() if verdict != "legal"]
    return ", ".join(odd) or "legal"
