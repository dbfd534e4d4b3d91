"""Reuse: the stage cache as a worker uses it: the longest cached prefix of stages goes into a trial's folder
before its trainer starts; what the trainer finished there, however it ended, is kept after.

The trainer resumes by stage inside its folder and says in its result which stages it took over (`reused`).
Its recorded seconds come with them: the limits judge what the work took, not what a copy takes. Entries hold
the early reports of their training too: a trial that takes it over replays them, so that it is pruned, or
not, like any other.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

from optuna.trial import Trial

from search.common.attributes import RETRY_HISTORY
from search.common.options import WorkerSpec
from search.common.paths import Folders
from search.stage_cache.addresses import DataId, Ground, addresses, machine_id
from search.stage_cache.remote import Remote, open_remote
from search.stage_cache.store import Limits, Store
from search.trainers.files import Record, Tail, as_object
from techniques.config import Resolved

REPORTS = "reports.jsonl"
PACK = ("stage_pack.json", "artifact.bin")
FILES = {  # stage -> what it leaves; a later one needs nothing of an earlier one
    "average": ("stage_average.json", "weights.pt"),
    "pack": PACK,
    "evaluate": (*PACK, "stage_evaluate.json"),
}
REPLAYED = "replayed"  # marks a report that was not measured in this trial
Addresses = Mapping[str, str]
Fill = Callable[[Path], tuple[Record, ...]]  # puts stages into a trial's folder, gives their early reports


class Reuse:
    """One worker's view of the cache."""

    def __init__(self, store: Store, ground: Ground, *, remote: Remote | None = None):
        self.store, self.ground, self.remote = store, ground, remote
        self.data = DataId(store.root / "data.json")

    @contextmanager
    def around(self, trial: Trial, resolved: Resolved, folders: Folders) -> Generator[Fill]:
        """What fills the trial's folder; in the end, however that comes, what is new there is kept. A crashed
        trial goes on from its last finished stage; after a second crash nothing old is trusted."""
        storage, trial_id = trial.storage, trial._trial_id  # pyright: ignore[reportPrivateUsage]
        history: list[int] = storage.get_trial_system_attrs(trial_id).get(RETRY_HISTORY, [])
        at, distrusted = self.addresses(resolved), len(history) > 1
        for number in () if distrusted else history:
            self.keep(folders.trial(number), at)  # its worker may have been killed before it could
        try:
            yield partial(self.fill, at={} if distrusted else at)
        finally:
            self.keep(folders.trial(trial.number), at, replace=distrusted)

    def addresses(self, resolved: Resolved) -> Addresses:
        """Where the stages of this run would lie; {} when its data or code cannot be read: no cache then."""
        machine = machine_id(resolved, self.ground)
        try:
            return addresses(resolved, data=self.data.of(resolved), machine=machine)
        except OSError as error:
            self.store.note("identity", f"{error.filename}: {error.strerror}; nothing is reused")
            return {}

    def has_training(self, resolved: Resolved) -> bool:
        """Whether the local store holds the weights that this run would train."""
        found = self.addresses(resolved)
        return bool(found) and self.store.has(f"average-{found['average']}")

    def fill(self, folder: Path, at: Addresses) -> tuple[Record, ...]:
        """Puts the files of the last stage that is cached into `folder`; returns the training's reports."""
        for stage in reversed(FILES):
            name = f"{stage}-{at[stage]}" if stage in at else ""
            if name and self._fetch(name, folder):
                lines = Tail(folder / REPORTS).records()
                return tuple(record | {REPLAYED: True} for record in lines)
        return ()

    def _fetch(self, name: str, folder: Path) -> bool:
        if self.store.fetch(name, folder) is not None:
            return True
        there = self.remote is not None and self.remote.fetch(name)
        return there and self.store.fetch(name, folder) is not None

    def keep(self, folder: Path, at: Addresses, *, replace: bool = False) -> None:
        """Stores every stage that the trainer finished in `folder` under the keys it gave itself there.

        `replace`: also over an entry of the same key, which may be what made earlier trainers crash."""
        told = _read(folder / "resolved.json").get("stage_keys")
        if not at or not isinstance(told, dict):
            return  # no trainer came as far as its settings
        keys = cast("dict[str, str]", told)
        for stage, names in FILES.items():
            record, files = _read(folder / f"stage_{stage}.json"), [folder / name for name in names]
            if record.get("key") != keys.get(stage) or not all(path.exists() for path in files):
                continue
            if stage == "evaluate" and record.get("sha256") != _read(folder / PACK[0]).get("sha256"):
                continue
            self._store(f"{stage}-{at[stage]}", [*files, _reports(folder)], str(record["key"]), replace)

    def _store(self, name: str, files: Sequence[Path], key: str, replace: bool) -> None:
        facts = self.store.facts(name)
        if facts is not None and (replace or facts.get("key") != key):
            self.store.drop(name)
        if self.store.put(name, files, {"key": key}) and self.remote is not None:
            self.remote.push(name)


def check_cache(spec: WorkerSpec) -> None:
    """ValueError, before any worker starts, for what would stop every worker."""
    parse_bytes(spec.cache_size)
    if spec.cache_shared and spec.cache is None:
        raise ValueError("A shared stage cache needs a local folder, but --cache is off. Leave one out.")
    if spec.cache_shared and spec.cache is not None:
        open_remote(spec.cache_shared, Store(spec.cache))


def open_reuse(spec: WorkerSpec, *, ranks: int, environ: Mapping[str, str]) -> Reuse | None:
    """The cache that the spec names, or None. ValueError when a shared store cannot be used at all."""
    if spec.cache is None:
        return None
    store = Store(spec.cache, Limits(parse_bytes(spec.cache_size)))
    remote = open_remote(spec.cache_shared, store) if spec.cache_shared else None
    return Reuse(store, Ground(ranks, spec.threads, environ), remote=remote)


def parse_bytes(text: str) -> int:
    """`500 MB`, `10GB`, `2e9` -> bytes, decimal. ValueError otherwise."""
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    number = text.strip().upper().rstrip("KMGTB").strip()
    unit = text.strip().upper()[len(number) :].strip()
    try:
        size = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size <= 0:
        raise ValueError(f"A size is a positive number with a decimal unit, but got {text!r}. Use 10GB.")
    return size


def _reports(folder: Path) -> Path:
    """The training's reports as a file: measured in this folder, else those that came with the stage."""
    path, lines = folder / REPORTS, list[bytes]()
    if (folder / "metrics.jsonl").exists():
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    mine = [line for line in lines if (as_object(line) or {}).get("kind") == "report"]
    if mine or not path.exists():
        path.write_bytes(b"".join(line + b"\n" for line in mine))
    return path


def _read(path: Path) -> Record:
    """A JSON object of a file, {} without one."""
    try:
        return as_object(path.read_bytes()) or {}
    except OSError:
        return {}
