"""ForeignTrainer: somebody else's script, driven through search/trainers/foreign/adapter.py."""

import dataclasses
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from readers.log_reader import Rules
from search.common.machine import machine_kind
from search.study.foreign import Foreign
from search.study.model import Study
from search.trainers.files import code_hash
from techniques.config import digest

ADAPTER = (sys.executable, "-m", "search.trainers.foreign.adapter")
HERE = ("PATH", "HOME", "USER", "TMPDIR")  # variables that are the machine's, whoever reads them


@dataclass(frozen=True)
class ForeignTrainer:
    """search/trainers/trainer.py says what each part means."""

    study: Study
    foreign: Foreign  # the study's, its script and folder found

    built_in = False
    has_baseline = True
    start = "the script as it is"
    predicts_costs = False
    keeps_stages = False

    def check(self) -> None:
        path, script, first = self.study.path, self.foreign.script, self.foreign.command[0]
        if not script:
            raise ValueError(
                f"{path} drives a script, but names none. Add `script` to [trainer], or give --trainer."
            )
        if not Path(script).is_file():
            raise ValueError(f"{path} drives {script}, but there is no such file. Correct the path.")
        if "{" not in first and shutil.which(first) is None:
            raise ValueError(
                f"`trainer.command` starts {first!r}, but there is no such program here. Install it, or "
                f"write {{python}} for the interpreter that runs the search ({sys.executable})."
            )
        if not Path(self.foreign.folder).is_dir():
            raise ValueError(
                f"`trainer.folder` must be a folder, but {self.foreign.folder} is none. Correct the path."
            )

    def command(self) -> tuple[str, ...]:
        return ADAPTER

    def code_files(self) -> list[Path]:
        script = Path(self.foreign.script)
        return [script, *sorted(p for p in script.parent.glob("*.py") if p.name != script.name)]

    def hidden(self) -> set[str]:
        from readers.scan import names_read  # a parser that only a worker's start needs

        foreign = self.foreign
        read = names_read(Path(foreign.script)) if foreign.script else set[str]()
        return (read | {*foreign.fixed, *foreign.variables}) - {*foreign.passed, *HERE}

    def complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {**config, "trainer": self.facts(config["environment"])}

    def seeded(self, config: Mapping[str, Any], resolved: Any, seed: int) -> tuple[dict[str, Any], Any]:
        environment = {**config["environment"], self.foreign.seed: str(seed)}
        return {**config, **self.complete({"environment": environment})}, resolved

    def time_budget(self) -> str:
        name, fixed = self.foreign.wallclock, self.foreign.fixed
        varies = name in self.foreign.variables or (name and float(fixed.get(name, 0) or 0) > 0)
        return name if varies else ""

    def legality(self, resolved: object) -> str:
        return "not known"

    def repeat_line(self, config: Mapping[str, Any], path: Path) -> str:
        """Without us, and without a file: the environment is the configuration."""
        trainer, environment = config["trainer"], config["environment"]
        texts = [f"{name}={shlex.quote(text)}" for name, text in sorted(environment.items())]
        words = [shlex.quote(word.replace("{work}", ".")) for word in trainer["command"]]
        return " ".join(["cd", shlex.quote(trainer["folder"]), "&&", *texts, *words])

    def no_bundle(self, number: int) -> str:
        return (
            "A bundle is made of this trainer's files, but the study drives another script. That script and "
            f"the environment of `search.py show {number}` are the submission."
        )

    def facts(self, environment: Mapping[str, str]) -> dict[str, Any]:
        """The `trainer` part of config.json: everything that the adapter must know."""
        foreign = self.foreign
        return {
            "command": list(self.words()),
            "folder": foreign.folder,
            **{name: list(getattr(foreign, name)) for name in ("private", "files", "keep")},
            "silent_seconds": foreign.silent_seconds,
            "max_output": foreign.max_output_bytes,
            "rules": dataclasses.asdict(self.rules(environment)),
            "code_hash": code_hash(self.code_files()),
            "hardware": machine_kind(),
            "hash": digest(dict(environment)),
        }

    def words(self) -> tuple[str, ...]:
        """The script's own command line, its places filled; {work} stays for the adapter."""
        script, folder = Path(self.foreign.script), Path(self.foreign.folder)
        named = script.relative_to(folder) if script.is_relative_to(folder) else script
        filled = {"{python}": sys.executable, "{script}": str(named)}
        filled["{gpus}"] = str(self.study.gpus_per_trial)
        words = list(self.foreign.command)
        for place, text in filled.items():
            words = [word.replace(place, text) for word in words]
        return tuple(words)

    def rules(self, environment: Mapping[str, str]) -> Rules:
        foreign = self.foreign

        def number(name: str) -> float:
            try:
                return max(0.0, float(environment.get(name, "0"))) if name else 0.0
            except ValueError:
                return 0.0

        return Rules(
            **{name: getattr(foreign, name) for name in ("score", "occurrence", "size", "eval_lines")},
            num_reports=self.study.num_reports,
            wallclock_s=number(foreign.wallclock),
            warmdown_iters=number(foreign.warmdown),
            warmdown_frac=number(foreign.warmdown_frac),
        )
