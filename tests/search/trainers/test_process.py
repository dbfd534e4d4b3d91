"""run_trainer with a fake trainer, fresh and forked: every way a process can end, and that nothing of it is
left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.common.errors import InfrastructureError, Interrupted
from search.trainers.files import Record, Tail
from search.trainers.process import (
    DiskTrouble,
    Job,
    Outcome,
    TrainerCrashed,
    run_trainer,
    trainer_environment,
)
from search.trainers.warm import WarmTrainers
from tests.conftest import ROOT
from tests.search.db_helpers import alive

FAKE = (sys.executable, str(ROOT / "tests" / "search" / "fake_trainer.py"))


WARM = WarmTrainers(FAKE, late=())
FORKED = [WARM] * (sys.platform == "linux")  # what test_kill_9 gives a process of its own


@pytest.fixture(params=["fresh", "forked"], autouse=True)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test with both kinds of process."""
    forked = request.param == "forked" and sys.platform == "linux"
    FORKED[:] = [WARM] * forked
    before = WARM.runs
    yield request.param
    assert forked or WARM.runs == before


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    """It ends with this file's tests."""
    yield
    WARM.close()
    assert WARM.left == [] or all(process.poll() is not None for process in WARM.left)


def job_of(tmp_path: Path, mode: str, **changes: Any) -> Job:
    config = {"run_id": mode, "num_reports": 4}
    kept: dict[str, Any] = {"environment": dict(os.environ), "timeout_s": 20.0, "command": FAKE} | changes
    kept["warm"] = next(iter(FORKED), None)
    return Job(folder=tmp_path / "7", config=config, **kept)


def never(record: Record, reports: tuple[Record, ...]) -> None:
    return None


def run(job: Job) -> Outcome:
    return run_trainer(job, on_report=never)


def gone(pid: int, within_s: float = 5.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


def test_finished_run_has_its_result_and_every_report(tmp_path: Path) -> None:
    outcome = run(job_of(tmp_path, "ok"))
    assert outcome.kind == "finished" and outcome.result is not None
    assert outcome.result["artifact_bytes"] == 400_000
    assert [r["progress"] for r in outcome.reports] == [0.25, 0.5, 0.75]
    assert json.loads((tmp_path / "7" / "config.json").read_text()) == {"run_id": "ok", "num_reports": 4}


def test_garbage_among_the_metrics_is_skipped(tmp_path: Path) -> None:
    outcome = run(job_of(tmp_path, "garbage"))
    assert outcome.kind == "finished" and len(outcome.reports) == 3


def test_pruned_run_ends_at_the_report_that_says_so(tmp_path: Path) -> None:
    def verdict(record: Record, reports: tuple[Record, ...]) -> str | None:
        return "worse than 9 of 10" if record["progress"] == 0.5 else None

    outcome = run_trainer(job_of(tmp_path, "hang"), on_report=verdict)
    assert (outcome.kind, outcome.reason, len(outcome.reports)) == ("pruned", "worse than 9 of 10", 2)
    assert gone(int((tmp_path / "7" / "pid").read_text()))


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("refuse", "refused: The corpus must be whole, but shard 3 is cut. Build it again."),
        ("diverged", "diverged: train_loss is nan at step 7"),
        ("nan", "no number: the result's val_bpb is nan"),
    ],
)
def test_the_configurations_fault(tmp_path: Path, mode: str, reason: str) -> None:
    outcome = run(job_of(tmp_path, mode))
    assert (outcome.kind, outcome.reason) == ("failed", reason)


@pytest.mark.parametrize(
    ("mode", "error", "says"),
    [
        ("crash", TrainerCrashed, "exit status 1: RuntimeError: an exception nobody caught"),
        ("killed", TrainerCrashed, "killed by SIGKILL"),
        ("silent", TrainerCrashed, "without a result"),
        ("disk", DiskTrouble, "No space left"),
    ],
)
def test_the_machines_fault(tmp_path: Path, mode: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        run(job_of(tmp_path, mode))


def test_a_trainer_that_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="could not be started"):
        run(job_of(tmp_path, "ok", command=("/nowhere/python", "train.py")))


@pytest.mark.parametrize("mode", ["hang", "stubborn"])
def test_timeout_is_the_configurations_fault(tmp_path: Path, mode: str) -> None:
    outcome = run(job_of(tmp_path, mode, timeout_s=4.0))  # time to start on a busy machine
    assert outcome.kind == "failed" and outcome.reason == "timeout: still running after 4 s"
    assert gone(int((tmp_path / "7" / "pid").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="orphans that left the group are adopted on Linux only")
def test_children_end_with_the_trainer(tmp_path: Path) -> None:
    run(job_of(tmp_path, "children"))
    for pid in json.loads((tmp_path / "7" / "children").read_text()):
        assert gone(pid)


def test_stop_interrupts(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run_trainer(job_of(tmp_path, "hang"), on_report=never, stop=(tmp_path / "7" / "metrics.jsonl").exists)
    assert gone(int((tmp_path / "7" / "pid").read_text()))


@pytest.mark.parametrize("victim", ["worker", "guard"])
def test_kill_9_leaves_no_trainer(tmp_path: Path, victim: str) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.search.trainers.test_process import *\n"
        f"del FORKED[{len(FORKED)}:]\n"
        "try: run(job_of(Path(sys.argv[1]), 'stubborn'))\n"
        "except TrainerCrashed as error: print(error)"
    )
    root = ROOT
    worker = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True
    )
    pid_file = tmp_path / "7" / "pid"
    until = time.monotonic() + 20
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    trainer = int(pid_file.read_text())
    if victim == "worker":
        worker.kill()
    else:
        os.kill(os.getpgid(trainer), signal.SIGKILL)  # the guard leads the group
    said = worker.communicate(timeout=20)[0]
    assert gone(trainer, within_s=8)
    assert victim == "worker" or "guard was killed" in said


def test_an_older_studys_folder_is_kept_aside(tmp_path: Path) -> None:
    run(job_of(tmp_path, "ok"))
    outcome = run(job_of(tmp_path, "ok"))
    assert len(outcome.reports) == 3
    assert (tmp_path / "7.old-1" / "result.json").exists()


def test_read_only_folder_is_the_disks_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    job = job_of(tmp_path, "ok")
    blocked = Job(tmp_path / "file" / "7", job.config, job.environment, 5.0, command=FAKE)
    with pytest.raises(InfrastructureError):
        run(blocked)


def test_tail_reads_partial_lines_and_a_file_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.records() == []
    path.write_text('{"a": 1}\n{"a"')
    assert tail.records() == [{"a": 1}]
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert tail.records() == [{"a": 2}]
    path.write_text('{"a": 3}\n')
    assert tail.records() == [{"a": 3}]


def test_environment_has_no_settings_and_no_credentials() -> None:
    given = {"PATH": "/bin", "XSA_LAST_N": "4", "RANK": "1", "PGPASSWORD": "x", "CADDIE_STORAGE": "y"}
    given |= {"HF_TOKEN": "z", "OMP_NUM_THREADS": "64", "CUDA_VISIBLE_DEVICES": "2"}
    kept = trainer_environment(given, strip={"XSA_LAST_N"}, num_threads=1)
    assert kept["OMP_NUM_THREADS"] == "1" and kept["CUDA_VISIBLE_DEVICES"] == "2" and kept["PATH"] == "/bin"
    assert not {"XSA_LAST_N", "RANK", "PGPASSWORD", "CADDIE_STORAGE", "HF_TOKEN"} & set(kept)


def test_a_trial_of_several_ranks_runs_under_torchrun():
    from search.trainers.trainer import TRAINER, trainer_command

    assert trainer_command(1) == TRAINER
    command = trainer_command(8)
    assert command[1:4] == ("-m", "torch.distributed.run", "--standalone")
    assert "--nproc_per_node=8" in command and command[-1] == TRAINER[-1]
