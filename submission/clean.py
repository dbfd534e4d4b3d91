"""run_clean(folder, ...) -> Clean: a submission's folder in a process of its own, as its README says.

The folder is copied to a temporary one, and the interpreter starts there with `-I` (or torchrun) and an
environment of ENVIRONMENT and the README's variables alone: nothing of this project can be imported.
"""

import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from readers.log_reader import LogError, LogReader, Rules
from search.trainers import guard
from search.trainers.files import last_words
from search.trainers.process import LAST_WORDS_S
from techniques.config import digest

ENVIRONMENT = ("PATH", "LANG", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "TMPDIR")  # kept of the shell's
SCRIPT = "train_gpt.py"
BPB_WITHIN = 0.002  # of a second run where bits may differ: a GPU, or a clock that ends the training
BYTES_WITHIN = 0.005  # relative, of its packed model


@dataclass(frozen=True)
class Clean:
    """What a clean process gave."""

    seed: int
    val_bpb: float
    val_loss: float
    script_bytes: int
    model_bytes: int
    sha256: str  # of the packed model
    train_seconds: float
    eval_seconds: float
    log: str


@dataclass(frozen=True)
class Launch:
    """How a folder is run."""

    data: Path
    tokenizer: str  # its name in the folder
    ranks: int = 1
    threads: int = 1  # 0: the trainer's own choice
    gpus: str = ""  # CUDA_VISIBLE_DEVICES; "": the shell's
    timeout_s: float = 3600.0

    def words(self) -> list[str]:
        """The command behind its variables."""
        if self.ranks == 1:
            return ["python", "-I", SCRIPT]
        return ["torchrun", "--standalone", f"--nproc_per_node={self.ranks}", SCRIPT]

    def command(self) -> list[str]:
        """The same with this interpreter."""
        if self.ranks == 1:
            return [sys.executable, *self.words()[1:]]
        return [sys.executable, "-I", "-m", "torch.distributed.run", *self.words()[1:]]

    def variables(self, seed: int | None = None) -> dict[str, str]:
        """What the README's command sets; `seed` where it is not the script's own."""
        given = {"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}
        given |= {"DATA_PATH": str(self.data), "TOKENIZER_PATH": self.tokenizer}
        return given | ({"SEED": str(seed)} if seed is not None else {})

    def line(self, data: str) -> str:
        """The README's command, the data in the folder `data`."""
        given = {**self.variables(), "DATA_PATH": data}
        return shlex.join([f"{k}={v}" for k, v in given.items()] + self.words())


def run_clean(folder: Path, launch: Launch, seed: int, *, own_seed: bool, keep: Path | None = None) -> Clean:
    """ValueError when the process fails or its log does not say what it gave. `keep`: a folder of earlier
    ones; the same script with the same seed is not run twice."""
    script = (folder / SCRIPT).read_bytes()
    kept = keep / digest([hashlib.sha256(script).hexdigest(), seed, launch.variables()]) if keep else None
    if kept and (kept / "clean.json").exists():
        return Clean(**json.loads((kept / "clean.json").read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory(prefix="submission-") as name:
        place = Path(name) / "folder"
        shutil.copytree(folder, place)
        environment = {k: os.environ[k] for k in ENVIRONMENT if k in os.environ}
        environment |= {"HOME": name} | launch.variables(None if own_seed else seed)
        environment |= {"CUDA_VISIBLE_DEVICES": launch.gpus} if launch.gpus else {}
        _run(launch.command(), place, environment, launch.timeout_s)
        found = _read(place, seed)
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
        beside = kept / f"clean.{os.getpid()}"
        beside.write_text(json.dumps(asdict(found)), encoding="utf-8")
        beside.replace(kept / "clean.json")
    return found


def _run(command: Sequence[str], place: Path, environment: Mapping[str, str], timeout_s: float) -> None:
    """To its end, or to ours in whatever way: under the trainers' guard nothing of it is left."""
    console = place.parent / "console.log"
    life, theirs = socket.socketpair()
    with life, theirs, console.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(theirs.fileno()), *command],
            cwd=place,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        life.settimeout(timeout_s)
        try:
            status = int(life.recv(64) or guard.CANNOT_START)
        except TimeoutError:
            raise ValueError(f"the clean process still ran after {timeout_s:.0f} s") from None
        finally:
            with suppress(OSError):
                life.shutdown(socket.SHUT_WR)
            with suppress(subprocess.TimeoutExpired):
                process.wait(LAST_WORDS_S)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status:
        raise ValueError(f"the clean process ended with status {status}: {last_words(console)}")


def reader_of(log: str) -> LogReader:
    """What the lines of a log have told."""
    reader = LogReader(Rules())
    for line in log.splitlines():
        reader.feed(line, 0.0)
    return reader


def _read(place: Path, seed: int) -> Clean:
    """From the files that a script leaves: train.log and artifact.bin."""
    try:
        log = (place / "train.log").read_text(encoding="utf-8")
        model = (place / "artifact.bin").read_bytes()
    except OSError as error:
        raise ValueError(f"the clean process left no {Path(error.filename).name}") from None
    reader = reader_of(log)
    try:
        _, bpb, loss = reader.value()
    except LogError as error:
        raise ValueError(f"the clean process's log: {error}") from None
    return Clean(
        seed=seed,
        val_bpb=bpb,
        val_loss=loss,
        script_bytes=(place / SCRIPT).stat().st_size,
        model_bytes=len(model),
        sha256=hashlib.sha256(model).hexdigest(),
        train_seconds=reader.train_seconds(0.0)[0],
        eval_seconds=reader.eval_seconds(0.0)[0],
        log=log,
    )


def unequal(clean: Clean, result: Mapping[str, Any], script_bytes: int, *, exact: bool) -> list[str]:
    """What of a clean run differs from the run that is submitted, in words."""
    found = list[str]()
    if clean.script_bytes != script_bytes:
        found.append(f"the script has {clean.script_bytes:,} bytes instead of {script_bytes:,}")
    bpb = float(result["val_bpb"])
    model = int(result["model_bytes"])
    if exact:
        if f"{clean.val_bpb:.8f}" != f"{bpb:.8f}":
            found.append(f"val_bpb {clean.val_bpb:.8f} instead of {bpb:.8f}")
        if clean.model_bytes != model:
            found.append(f"the packed model has {clean.model_bytes:,} bytes instead of {model:,}")
        if clean.sha256 != result["sha256"]:
            found.append(f"the packed model is {clean.sha256[:16]}… instead of {result['sha256'][:16]}…")
        return found
    if abs(clean.val_bpb - bpb) > BPB_WITHIN:
        found.append(f"val_bpb {clean.val_bpb:.5f} instead of {bpb:.5f}, {BPB_WITHIN} are allowed")
    if abs(clean.model_bytes - model) > BYTES_WITHIN * model:
        found.append(f"the packed model has {clean.model_bytes:,} bytes instead of {model:,}, 0.5 % allowed")
    return found
