"""What the search needs of a foreign trainer: ForeignSpace (environment variables under their conditions),
ForeignPreflight (nothing is predicted), and the way to its command.

A variable is asked for when its parent has a value that its `when` names; otherwise it is not set, and the
script's own default holds. A gate that is off is set to its `off` text.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.common.machine import machine_kind
from search.study.model import Study
from search.trainers.code import code_hash
from search.trainers.foreign.log_reader import Rules
from techniques.config import digest


def rules_for(study: Study, environment: Mapping[str, str]) -> Rules:
    """How this run's lines are read."""
    foreign = study.foreign
    assert foreign is not None

    def number(name: str) -> float:
        try:
            return max(0.0, float(environment.get(name, "0"))) if name else 0.0
        except ValueError:
            return 0.0

    return Rules(
        score=foreign.score,
        occurrence=foreign.occurrence,
        size=foreign.size,
        eval_lines=foreign.eval_lines,
        num_reports=study.num_reports,
        wallclock_s=number(foreign.wallclock),
        warmdown_iters=number(foreign.warmdown),
        warmdown_frac=number(foreign.warmdown_frac),
    )


def trainer_facts(study: Study, environment: Mapping[str, str]) -> dict[str, Any]:
    """The `trainer` part of config.json: everything that search/trainers/foreign/adapter.py must know."""
    foreign = study.foreign
    assert foreign is not None
    return {
        "command": list(command_words(study)),
        "folder": foreign.folder,
        "private": list(foreign.private),
        "files": list(foreign.files),
        "keep": list(foreign.keep),
        "silent_seconds": foreign.silent_seconds,
        "max_output": foreign.max_output_bytes,
        "rules": dataclasses.asdict(rules_for(study, environment)),
        "code_hash": code_hash(study),
        "hardware": machine_kind(),
        "hash": digest(dict(environment)),
    }


def command_words(study: Study) -> tuple[str, ...]:
    """The command line, its places filled; {work} stays for the adapter."""
    foreign = study.foreign
    assert foreign is not None
    script, folder = Path(foreign.script), Path(foreign.folder)
    shown = script.relative_to(folder) if script.is_relative_to(folder) else script
    filled = {"{python}": sys.executable, "{script}": str(shown), "{gpus}": str(study.gpus_per_trial)}
    words = list(foreign.command)
    for place, text in filled.items():
        words = [word.replace(place, text) for word in words]
    return tuple(words)


def reproduce_line(config: Mapping[str, Any]) -> str:
    """A shell line that runs a trial's configuration again, without us."""
    trainer, environment = config["trainer"], config["environment"]
    texts = [f"{name}={shlex.quote(text)}" for name, text in sorted(environment.items())]
    words = [shlex.quote(word.replace("{work}", ".")) for word in trainer["command"]]
    return " ".join(["cd", shlex.quote(trainer["folder"]), "&&", *texts, *words])
