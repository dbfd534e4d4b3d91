"""The command that repeats a trial."""

from __future__ import annotations

import json
from pathlib import Path

from optuna.trial import FrozenTrial
from rich.console import Console

from search.common.attributes import CONFIG
from search.common.paths import ROOT
from search.session.session import Session
from search.trainers.foreign.run import reproduce_line


def print_reproduce(console: Console, session: Session, trial: FrozenTrial) -> None:
    console.print(
        f"Best: #{trial.number}, {trial.value:.4f} bits/byte. To run it again:\n"
        f"  {reproduce_command(session, trial)}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def reproduce_command(session: Session, trial: FrozenTrial) -> str:
    """One line that trains the configuration again; config.json is written anew if it is not here."""
    config = session.whole([trial])[0].user_attrs[CONFIG]
    if session.study.foreign is not None:
        return reproduce_line(config)
    path = session.folders.trial(trial.number) / "config.json"
    if not path.exists():  # it ran on another machine
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return f"python train_gpt.py {quoted(shown)}"


def quoted(path: Path) -> str:
    text = str(path)
    return text if all(c.isalnum() or c in "/._-+" for c in text) else "'" + text.replace("'", "'\\''") + "'"
