"""The command that repeats a trial."""

from __future__ import annotations

from optuna.trial import FrozenTrial
from rich.console import Console

from search.common.attributes import CONFIG
from search.session.session import Session


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
    return session.trainer.repeat_line(config, session.folders.trial(trial.number) / "config.json")
