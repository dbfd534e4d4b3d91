"""addresses(resolved, ...) -> {stage: address}: what a stage's result depends on, as a worker can know it.

The construction is the trainer's own (`techniques.config.stage_keys`: upstream stage, own settings, seed,
budget), over what this process can see without torch: the text of every file that the trainer may execute,
the content of every shard, and the machine. The trainer's key knows more (kernels, precision). It stands in
each record that a stage leaves, and the trainer compares it before it reuses anything: an address finds, the
key decides. Reports of the training are part of an entry, so their number and size are part of its address.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from search.common.machine import gpu_models, visible_gpus
from search.common.paths import ROOT
from techniques import catalog
from techniques.config import Resolved, codes, digest, stage_keys
from trainer.machine import cpu_name

FORMAT = 1  # of an entry; another number is another address
CACHED_STAGES = ("average", "pack", "evaluate")  # that leave files; `average` ends the training
CHUNK_BYTES = 1 << 20


def addresses(resolved: Resolved, *, data: str, machine: Mapping[str, Any]) -> dict[str, str]:
    """stage -> 16 hexadecimal digits, for the stages that leave files."""
    reports = [resolved.config.num_reports, resolved.config.report_tokens]
    keys = stage_keys(resolved, code_of(resolved), data, {**machine, "reports": reports, "format": FORMAT})
    return {stage: keys[stage] for stage in CACHED_STAGES}


def code_of(resolved: Resolved, root: Path = ROOT) -> dict[str, str]:
    """Hashes of the text that a trainer started now would execute: trainer, contract and corpus, and each
    technique that is on. Files are read anew each time: who edits one gets another version at once."""
    files = catalog.shared_files(root)
    files += [path for name, path in catalog.technique_files().items() if name in resolved.techniques]
    hashes = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return codes(hashes, resolved)


@dataclass(frozen=True)
class Ground:
    """What a worker's trainers stand on."""

    ranks: int  # processes of one trial
    threads: int  # of a process on a CPU, where the settings do not say
    environ: Mapping[str, str]


def machine_id(resolved: Resolved, ground: Ground) -> dict[str, Any]:
    """What changes the last bits of a result, or what a second of the budget buys."""
    facts: dict[str, Any] = {"torch": version("torch"), "ranks": ground.ranks}
    if resolved.config.device != "cpu" and visible_gpus(ground.environ):
        return facts | {"gpus": gpu_models()}
    return facts | {"cpu": cpu_name(), "threads": resolved.config.num_threads or ground.threads}


class DataId:
    """The content of a dataset folder and its tokenizer, each file read once and again when it changes.

    `memo` is a JSON file that keeps path -> [size, mtime_ns, sha256] for the next worker on this machine."""

    def __init__(self, memo: Path):
        self.memo = memo
        self._known: dict[str, list[Any]] = {}

    def of(self, resolved: Resolved, root: Path = ROOT) -> str:
        """Hash over names and contents. OSError where a file cannot be read."""
        folder, tokenizer = root / resolved.config.data_path, root / resolved.config.tokenizer_path
        files = [p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
        before = dict(self._known or self._read())
        parts = [[path.name, self._hash(path)] for path in (*files, tokenizer)]
        if self._known != before:
            self._write()
        return digest(parts)

    def _hash(self, path: Path) -> str:
        stat, name = path.stat(), str(path.resolve())
        known = self._known.get(name)
        if known is None or known[:2] != [stat.st_size, stat.st_mtime_ns]:
            self._known[name] = [stat.st_size, stat.st_mtime_ns, sha256_of(path)]
        return str(self._known[name][2])

    def _read(self) -> dict[str, list[Any]]:
        try:
            found: object = json.loads(self.memo.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return self._known
        if isinstance(found, dict):
            self._known = cast("dict[str, list[Any]]", found)
        return self._known

    def _write(self) -> None:
        beside = self.memo.with_name(f"{self.memo.name}.{os.getpid()}")
        try:
            self.memo.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(self._known), encoding="utf-8")
            beside.replace(self.memo)
        except OSError:  # the memo saves time, nothing else
            beside.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(CHUNK_BYTES):
            found.update(part)
    return found.hexdigest()
