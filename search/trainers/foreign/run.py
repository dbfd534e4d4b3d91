"""ForeignTrainer: somebody else's script, driven through search/trainers/foreign/adapter.py."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from readers.log_reader import Rules
from search.common.machine import machine_kind
from search.common.paths import shown
from search.study.foreign import PATTERNS, Foreign, as_text, texts_of
from search.study.model import Study
from search.trainers.files import code_hash
from techniques.config import digest

if TYPE_CHECKING:
    from readers.scan import Scan

ADAPTER = (sys.executable, "-m", "search.trainers.foreign.adapter")
NOTHING: Mapping[str, Any] = MappingProxyType({})
LIBRARIES = re.compile(  # read what begins so, whether a script says it or not
    r"PYTHON|(?:OMP|MKL|OPENBLAS|CUDA|NVIDIA|NCCL|GLOO|TORCH|PYTORCH|TRITON|HF|WANDB|TOKENIZERS|XLA|JAX|MLX|LD|LC)_"
)
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
        self.refuse_unbound()
        named = dict.fromkeys((n for n, b in self.foreign.bindings.items() if b.table == "constants"), 0)
        for file, constants in self.edits(named).get("constants", {}).items():
            from readers.constants import replaced  # as in scanned()

            if Path(file).is_absolute():
                raise ValueError(
                    f"Constants are replaced in the run's own copy, but {file} lies outside of "
                    f"`trainer.folder`, {self.foreign.folder}. Name a folder that holds it."
                )
            replaced((Path(self.foreign.folder) / file).read_bytes(), constants)

    def refuse_unbound(self) -> None:
        """ValueError for what would be environment variables, but are arguments or constants there."""
        lines = list[str]()
        names = self.unbound()
        reads = self.scanned().reads if names else {}
        for name in names:
            read = reads.get(name)
            if read and read.where and read.table:
                lines.append(f"\n  [{read.table}] {name} = {json.dumps(read.where)}")
        if lines:
            raise ValueError(
                "A setting is an environment variable unless a table says where it goes, but "
                f"{Path(self.foreign.script).name} does not take these from there. Add:{''.join(lines)}"
            )

    def unbound(self) -> list[str]:
        """What goes into the environment, and is no text of the script or of what is beside it."""
        foreign = self.foreign
        text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in self.code_files())
        names = [n for n in (*foreign.fixed, *foreign.variables) if n not in foreign.bindings]
        return [name for name in names if not re.search(rf"(['\"]){name}\1", text)]

    def scanned(self) -> Scan:
        """What a scan says of the script; nothing where it cannot be parsed."""
        from readers.scan import Scan, scan  # a parser that only a start needs

        try:
            return scan(Path(self.foreign.script))
        except (ValueError, OSError):
            return Scan(Path(self.foreign.script))

    def doubts(self) -> str:
        found = self.scanned() if (names := self.unbound()) else None
        names = [n for n in names if found and n not in found.reads and not LIBRARIES.match(n)]
        if found is None or not names or any("run time" in odd or "environment" in odd for odd in found.odd):
            return ""
        return f"; {', '.join(names)}: no script here reads such a variable"

    def command(self) -> tuple[str, ...]:
        return ADAPTER

    def code_files(self) -> list[Path]:
        script = Path(self.foreign.script)
        return [script, *sorted(p for p in script.parent.glob("*.py") if p.name != script.name)]

    def hidden(self) -> set[str]:
        from readers.scan import names_read  # as in scanned()

        foreign = self.foreign
        read = names_read(Path(foreign.script)) if foreign.script else set[str]()
        return (read | {*foreign.fixed, *foreign.variables}) - {*foreign.passed, *HERE}

    def complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {**config, "trainer": self.facts(config)}

    def seeded(self, config: Mapping[str, Any], resolved: Any, seed: int) -> tuple[dict[str, Any], Any]:
        name = self.foreign.seed
        bound = name in self.foreign.bindings
        where = "settings" if bound else "environment"
        return self.complete(
            {**config, where: {**config.get(where, {}), name: seed if bound else str(seed)}}
        ), resolved

    def time_budget(self) -> str:
        name, fixed = self.foreign.wallclock, self.foreign.fixed
        varies = name in self.foreign.variables or (name and float(fixed.get(name, 0) or 0) > 0)
        return name if varies else ""

    def legality(self, resolved: object) -> str:
        return "not known"

    def repeat_line(self, config: Mapping[str, Any], path: Path) -> str:
        """Without us, and without a file: environment and command line are the configuration; where files
        are edited, by the adapter."""
        trainer, environment = config["trainer"], config["environment"]
        if trainer.get("keys") or trainer.get("constants"):
            if not path.exists():  # it ran on another machine
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
            again = path.parent / "again"
            words = ["python", *ADAPTER[1:], str(shown(path)), f"--out_dir={shown(again)}"]
            return f"mkdir -p {shlex.quote(str(shown(again)))} && {shlex.join(words)}"
        texts = [f"{name}={shlex.quote(text)}" for name, text in sorted(environment.items())]
        words = [shlex.quote(word.replace("{work}", ".")) for word in trainer["command"]]
        return " ".join(["cd", shlex.quote(trainer["folder"]), "&&", *texts, *words])

    def no_bundle(self, number: int) -> str:
        return (
            "A bundle is made of this trainer's files, but the study drives another script. That script and "
            f"the environment of `search.py show {number}` are the submission."
        )

    def facts(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The `trainer` part of config.json: everything that the adapter must know."""
        foreign, texts = self.foreign, texts_of(config)
        return {
            "command": list(self.words(config)),
            "folder": foreign.folder,
            **{name: list(getattr(foreign, name)) for name in ("private", "files", "keep")},
            **self.edits(config.get("settings", {})),
            "silent_seconds": foreign.silent_seconds,
            "max_output": foreign.max_output_bytes,
            "rules": dataclasses.asdict(self.rules(texts)),
            "code_hash": code_hash(self.code_files()),
            "hardware": machine_kind(),
            "hash": digest(texts),
        }

    def named(self) -> Path:
        """The script as a run names it: relative to the folder, where it lies in it."""
        script, folder = Path(self.foreign.script), Path(self.foreign.folder)
        return script.relative_to(folder) if script.is_relative_to(folder) else script

    def words(self, config: Mapping[str, Any] = NOTHING) -> tuple[str, ...]:
        """The script's own command line, its places filled; {work} stays for the adapter."""
        settings, bindings = config.get("settings", {}), self.foreign.bindings
        named = self.named()
        filled = {"{python}": sys.executable, "{script}": str(named)}
        filled["{module}"] = ".".join(named.with_suffix("").parts)
        filled["{gpus}"] = str(self.study.gpus_per_trial)
        filled |= {f"{{{n}}}": as_text(v) for n, v in settings.items() if bindings[n].table == "command"}
        absent = [f"{{{n}}}" for n, b in bindings.items() if b.table == "command" and n not in settings]
        words = [word for word in self.foreign.command if not any(place in word for place in absent)]
        for place, text in filled.items():
            words = [word.replace(place, text) for word in words]
        told = [
            w for n, v in settings.items() if bindings[n].table == "arguments" for w in bindings[n].words(v)
        ]
        at = words.index("{arguments}") if "{arguments}" in words else len(words)
        return (*words[:at], *told, *words[at + 1 :])

    def edits(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """{"keys": {file: {key: value}}, "constants": {file: {name: value}}} of a run; {} without any."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for name, value in settings.items():
            binding = self.foreign.bindings[name]
            if binding.table in ("keys", "constants"):
                file, _, key = binding.where.rpartition(":")
                inside = found.setdefault(binding.table, {}).setdefault(file or str(self.named()), {})
                inside[key] = value
        return dict(found)

    def rules(self, texts: Mapping[str, str]) -> Rules:
        """How its log is read; `texts` are its variables."""
        foreign = self.foreign

        def number(name: str) -> float:
            try:
                return max(0.0, float(texts.get(name, "0"))) if name else 0.0
            except ValueError:
                return 0.0

        return Rules(
            **{
                name: getattr(foreign, name)
                for name in ("score", "occurrence", "size", "eval_lines", *PATTERNS)
            },
            steps=int(number(foreign.steps)),
            num_reports=self.study.num_reports,
            wallclock_s=number(foreign.wallclock),
            warmdown_iters=number(foreign.warmdown),
            warmdown_frac=number(foreign.warmdown_frac),
        )
