"""trainer_of(study, script) -> Trainer: what a study runs, and all that differs between our trainer, another
script of its contract (`--trainer`) and somebody else's script ([trainer] of the study).

Chosen here and nowhere else; a session keeps it (search/session/session.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from search.study.model import Study
from search.trainers.foreign.run import ForeignTrainer
from search.trainers.native import NativeTrainer


class Trainer(Protocol):
    """A study's trainer, and what a search of it needs to know."""

    @property
    def built_in(self) -> bool:
        """Our own train_gpt.py: it reads our corpus, and studies of it share what costs taught."""
        ...

    @property
    def has_baseline(self) -> bool:
        """Whether the study's starting point is measured before the first trial."""
        ...

    @property
    def start(self) -> str:
        """The starting point in words."""
        ...

    @property
    def predicts_costs(self) -> bool:
        """Whether bytes and seconds of a configuration can be told before it runs."""
        ...

    @property
    def keeps_stages(self) -> bool:
        """Whether finished stages of one run can serve another."""
        ...

    def check(self) -> None:
        """ValueError when it cannot be started."""
        ...

    def command(self) -> tuple[str, ...]:
        """The process that a worker starts; config.json and --out_dir come behind it."""
        ...

    def code_files(self) -> list[Path]:
        """The files whose text is the objective."""
        ...

    def hidden(self) -> set[str]:
        """The variables of the shell that no run may see: those that it reads."""
        ...

    def complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """config.json, from what the space says of it."""
        ...

    def time_budget(self) -> str:
        """The setting that gives each run a time, not a number of steps; "" when none does."""
        ...

    def legality(self, resolved: Any) -> str:
        """What the rules say of a run of it."""
        ...

    def repeat_line(self, config: Mapping[str, Any], path: Path) -> str:
        """A shell line that runs a stored configuration again; `path` is where its config.json belongs."""
        ...

    def no_bundle(self, number: int) -> str:
        """Why trial `number` is not exported as one file of ours; "" when it can be."""
        ...


def trainer_of(study: Study, script: Path | None = None) -> Trainer:
    """The trainer of a study; `script` (`--trainer`) is run instead of the one that it names."""
    if study.foreign is None:
        return NativeTrainer(study, script)
    return ForeignTrainer(study, study.foreign.found(script))
