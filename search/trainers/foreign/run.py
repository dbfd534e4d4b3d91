"""What the search needs of a foreign trainer: ForeignSpace (environment variables under their conditions),
ForeignPreflight (nothing is predicted), and the way to its command.

A variable is asked for when its parent has a value that its `when` names; otherwise it is not set, and the
script's own default holds. A gate that is off is set to its `off` text.
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import optuna

from search.common.machine import machine_kind
from search.costs.preflight import Prediction, Preflight
from search.session.passport import code_hash
from search.space.native import Params, SearchSpace, contains, distribution, suggest_one
from search.study.foreign import Foreign, as_text
from search.study.model import Study
from search.trainers.foreign.log_reader import Rules
from search.trainers.process import TRAINER, trainer_command
from techniques import catalog
from techniques.base import Shape, Technique
from techniques.config import Config, Resolved, digest, environment_names

ADAPTER = (sys.executable, "-m", "search.trainers.foreign.adapter")
LEGALITY = "not known"  # of whatever a foreign script does


def command_for(study: Study, trainer: Path | None = None) -> tuple[str, ...]:
    """The process that a worker starts; config.json and --out_dir come behind it."""
    if study.foreign is not None:
        return ADAPTER
    if trainer is not None:
        return (TRAINER[0], str(trainer.resolve()))
    return trainer_command(study.gpus_per_trial)


def strip_for(study: Study) -> set[str]:
    """The variables of the shell that no run of the study may see: those that its trainer reads."""
    if study.foreign is None:
        return environment_names(catalog.metadata())
    from search.trainers.foreign.scan import names_read

    foreign = study.foreign
    read = names_read(Path(foreign.script)) if foreign.script else set[str]()
    return (read | {*foreign.fixed, *foreign.variables}) - {*foreign.passed, "PATH", "HOME", "USER", "TMPDIR"}


def with_trainer(study: Study, trainer: Path | None) -> Study:
    """The study with its script found. ValueError when there is none, or its command cannot be started."""
    foreign = study.foreign
    if foreign is None:
        return study
    script = trainer.resolve() if trainer is not None else Path(foreign.script) if foreign.script else None
    if script is None:
        raise ValueError(
            f"{study.path} drives a script, but names none. Add `script` to [trainer], or give --trainer."
        )
    if not script.is_file():
        raise ValueError(f"{study.path} drives {script}, but there is no such file. Correct the path.")
    first = foreign.command[0]
    if "{" not in first and shutil.which(first) is None:
        raise ValueError(
            f"`trainer.command` starts {first!r}, but there is no such program here. Install it, or write "
            f"{{python}} for the interpreter that runs the search ({sys.executable})."
        )
    folder = foreign.folder or str(script.parent)
    if not Path(folder).is_dir():
        raise ValueError(f"`trainer.folder` must be a folder, but {folder} is none. Correct the path.")
    return dataclasses.replace(study, foreign=dataclasses.replace(foreign, script=str(script), folder=folder))


def refuse_native_table(study: Study, trainer: Path | None) -> None:
    """ValueError when --trainer names a script that cannot keep the native contract."""
    if study.foreign is not None or trainer is None or not trainer.is_file():
        return
    if "result.json" not in trainer.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(
            f"A trainer under {study.path} takes config.json and writes result.json (docs/contracts.md), but "
            f"{trainer} never mentions it. If it takes environment variables, draft a study for it: python "
            f"search.py scan {trainer} --out theirs.toml, and give that as --study."
        )


class Gate(Technique):
    """A switch of a foreign script, as the reports list techniques; we know nothing about it."""

    name = "gate"

    def cost(self, shape: Shape) -> Any:
        raise ValueError("Only techniques of this trainer have a known cost, but this is a foreign gate.")


@dataclass(frozen=True)
class ForeignRun(Resolved):
    """One configuration of a foreign trainer; `values` are the texts of its environment."""

    legality: ClassVar[str] = LEGALITY

    def identity(self, last: str = "") -> dict[str, Any]:
        return dict(self.values)


@dataclass(frozen=True)
class ForeignSpace(SearchSpace):
    """The variables of a foreign study. Slots, rivals and forced techniques are empty."""

    @property
    def foreign(self) -> Foreign:
        assert self.study.foreign is not None
        return self.study.foreign

    def walk(self, pick: Callable[[str], Any]) -> tuple[dict[str, Any], frozenset[str]]:
        """(active variables with their values, gates that are on); `pick(name)` gives a value."""
        picked: dict[str, Any] = {}
        for name, variable in self.foreign.variables.items():
            if variable.when is None or _holds(picked, variable.when):
                picked[name] = pick(name)
        return picked, frozenset(n for n, v in picked.items() if self.foreign.variables[n].gate and v)

    def environment(self, params: Params) -> dict[str, str]:
        """The variables of a run: what is fixed, and what was sampled and is active."""
        texts = {name: as_text(value) for name, value in self.foreign.fixed.items()}
        for name, value in self.walk(self._lookup(params))[0].items():
            if name in params:
                texts[name] = self.foreign.variables[name].text(value)
        return texts

    def config(self, params: Params) -> dict[str, Any]:
        """config.json for search/trainers/foreign/adapter.py."""
        environment = self.environment(params)
        return {"environment": environment, "trainer": trainer_facts(self.study, environment)}

    def resolve(self, params: Params) -> ForeignRun:
        """The run, without its trainer's facts."""
        on = self.walk(self._lookup(params))[1] if params else ()
        gates = {name: cast("Technique", Gate()) for name in sorted(on)}
        return ForeignRun(Config(), gates, dict(self.environment(params)), {})

    def params_of(self, config: Params) -> dict[str, Any]:
        """The parameters of known values {NAME: value}, for a warm start. ValueError outside the space."""

        def pick(name: str) -> Any:
            if name not in config:
                raise ValueError(f"A configuration gives every active variable, but not {name}. Add it.")
            if not contains(self.distributions[name], config[name]):
                raise ValueError(
                    f"`{name}` must lie in this study's {self.distributions[name]}, but the configuration "
                    f"has {config[name]!r}. Widen the space, or leave it out."
                )
            return config[name]

        return self.walk(pick)[0]

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        return self.walk(lambda name: suggest_one(trial, name, self.distributions[name]))[0]

    def may_be_on(self) -> set[str]:
        return set(self.switches)

    def _condition(self, name: str) -> tuple[str, ...]:
        when = self.foreign.variables[name].when
        return () if when is None else ("when", when[0], *map(str, when[1]))


def _holds(picked: Mapping[str, Any], when: tuple[str, tuple[Any, ...]]) -> bool:
    parent, accepted = when
    return parent in picked and picked[parent] in accepted


def foreign_space(study: Study) -> ForeignSpace:
    """The space of a foreign study. ValueError when nothing in it is free."""
    assert study.foreign is not None
    variables = study.foreign.variables
    if not variables:
        raise ValueError(
            f"A study must leave something free, but {study.path} has no variable in [space]. Add one: "
            f"MATRIX_LR = {{ low = 0.01, high = 0.1, log = true }}."
        )
    return ForeignSpace(
        study=study,
        known={},
        distributions={name: distribution(v.domain) for name, v in variables.items()},
        slots={},
        switches=tuple(name for name, v in variables.items() if v.gate),
        forced=frozenset(),
        rivals={},
    )


class ForeignPreflight(Preflight):
    """Knows no costs: whatever the space gives is tried, and the limits judge it afterwards."""

    def predict(self, resolved: Resolved) -> Prediction:
        return cast("Prediction", None)  # the sampler keeps a prediction where there is one

    def rejection(self, resolved: Resolved) -> str | None:
        return None

    def learn(self, results: Iterable[tuple[Resolved, Mapping[str, Any]]], *, study: str = "") -> None:
        """Nothing to calibrate."""


def preflight_for(study: Study, hardware: str = "") -> Preflight:
    """What predicts and admits for this study, on this hardware."""
    return (Preflight if study.foreign is None else ForeignPreflight)(study, hardware=hardware)


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
