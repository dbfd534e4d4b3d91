"""WarmTrainers: what a server serves, when another one takes its place, and that a fork computes the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.common.errors import Interrupted
from search.trainers import warm as warm_module
from search.trainers.process import Job, Outcome, run_trainer, trainer_environment
from search.trainers.warm import WarmTrainers
from tests.conftest import TINY_MODEL

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")
SCRIPT = """
import json, os, sys, threading
from pathlib import Path
{more}
def main(argv):
    out = Path(argv[1].removeprefix("--out_dir="))
    names = ("val_bpb", "artifact_bytes", "train_seconds", "eval_seconds")
    told = dict.fromkeys(names, 1.0) | {{"status": "finished", "fds": os.listdir("/proc/self/fd")}}
    told |= {{"argv": sys.argv, "word": os.environ.get("WORD"), "cwd": os.getcwd(), "nice": os.nice(0)}}
    told["server"] = "forkserver" in Path("/proc/self/cmdline").read_text()
    print("said", flush=True)
    (out / "result.json").write_text(json.dumps(told))
    return 0
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


class Bench:
    """Runs of a small script, one after the other."""

    def __init__(self, folder: Path, more: str = ""):
        self.folder, self.number = folder, 0
        self.script = folder / "small.py"
        self.script.write_text(SCRIPT.format(more=more))
        self.trainer = (sys.executable, str(self.script))
        self.warm = WarmTrainers(self.trainer, late=())

    def job(self, *before: str, word: str = "one") -> Job:
        self.number += 1
        environment = {**os.environ, "WORD": word}
        folder, command = self.folder / str(self.number), (*before, *self.trainer)
        return Job(folder, {}, environment, 60.0, command=command, cwd=self.folder, warm=self.warm)

    def run(self, *before: str, word: str = "one") -> dict[str, Any]:
        outcome = run_trainer(self.job(*before, word=word), on_report=lambda record, reports: None)
        assert outcome.kind == "finished" and outcome.result is not None, outcome
        return outcome.result

    def server(self) -> int:
        """The process id of the server; 0 without one."""
        return self.warm.process.pid if self.warm.process else 0


@contextlib.contextmanager
def bench_of(folder: Path, more: str = "") -> Iterator[Bench]:
    bench = Bench(folder, more)
    try:
        yield bench
    finally:
        bench.warm.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with bench_of(tmp_path) as made:
        yield made


def test_runs_are_forks_of_one_server_and_see_what_a_fresh_process_would(bench: Bench) -> None:
    first, second = bench.run(), bench.run()
    assert first["server"] and second["server"] and bench.warm.runs == 2
    assert first["argv"] == [
        str(bench.script),
        str(bench.folder / "1/config.json"),
        f"--out_dir={bench.folder / '1'}",
    ]
    assert first["cwd"] == str(bench.folder) and first["word"] == "one"
    assert len(first["fds"]) <= 4, "its three, and the one that lists them"
    assert (bench.folder / "1" / "console.log").read_text() == "said\n"


def test_another_environment_or_niceness_takes_another_server(bench: Bench) -> None:
    assert bench.run(word="one")["word"] == "one"
    server = bench.server()
    assert bench.run(word="one")["word"] == "one" and bench.server() == server
    assert bench.run(word="two")["word"] == "two" and bench.server() not in (0, server)
    assert bench.run("nice", "-n", "3", word="two")["nice"] == os.nice(0) + 3


def test_sources_that_changed_take_another_server(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = [1]
    monkeypatch.setattr(warm_module, "sources", lambda: (("train_gpt.py", stamp[0], 0),))
    bench.run()
    server = bench.server()
    stamp[0] = 2
    assert bench.run()["server"] and bench.server() != server


def test_the_sources_are_all_that_a_run_may_execute() -> None:
    named = {Path(path).name for path, _, _ in warm_module.sources()}
    assert {"train_gpt.py", "muon.py", "xsa.py", "lean.py", "shards.py", "_quant.py"} <= named


@pytest.mark.parametrize("bound", ["RUNS", "MOST_BYTES"])
def test_a_server_serves_so_many_runs_and_holds_so_much(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(warm_module, bound, 1)
    bench.run()
    server = bench.server()
    assert bench.run()["server"] and bench.server() != server


def test_a_server_that_was_killed_costs_no_run(bench: Bench) -> None:
    bench.run()
    os.kill(bench.server(), signal.SIGKILL)
    found = [bench.run()["server"] for _ in range(3)]
    assert found[-1] and bench.server()


@pytest.mark.parametrize(
    "more",
    [
        "threading.Thread(target=threading.Event().wait, daemon=True).start()",
        "if __name__ != '__main__': raise ImportError('not as a module')",
    ],
)
def test_a_script_that_cannot_be_forked_runs_fresh(tmp_path: Path, more: str) -> None:
    with bench_of(tmp_path, more) as bench:
        assert [bench.run()["server"] for _ in range(2)] == [False, False]
        assert bench.server() == 0


def test_a_stop_while_the_server_starts_is_heard(tmp_path: Path) -> None:
    with bench_of(tmp_path, "if __name__ != '__main__': threading.Event().wait(60)") as bench:
        with pytest.raises(Interrupted):
            run_trainer(bench.job(), on_report=lambda record, reports: None, stop=lambda: True)
        assert bench.server() == 0 and not (bench.folder / "1" / "result.json").exists()


def test_a_server_that_takes_too_long_begins_nothing_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_module, "START_S", 0.3)
    with bench_of(tmp_path, "if __name__ != '__main__': threading.Event().wait(1.5)") as bench:
        assert [bench.run()["server"] for _ in range(2)] == [False, False]
        assert all(process.wait(5) == -signal.SIGKILL for process in bench.warm.left)


def tiny_run(folder: Path, data: dict[str, str], warm: WarmTrainers | None, **more: Any) -> Outcome:
    settings = {**TINY_MODEL, **data, "num_reports": "3", **more}
    environment = trainer_environment(os.environ, strip=set(), num_threads=1)
    job = Job(folder, settings, environment, 250.0, warm=warm)
    return run_trainer(job, on_report=lambda record, reports: None)


@pytest.mark.slow
def test_a_fork_of_the_trainer_computes_what_a_fresh_process_does(
    tmp_path: Path, tiny_data: dict[str, str]
) -> None:
    warm = WarmTrainers()
    try:
        forked = tiny_run(tmp_path / "warm", tiny_data, warm, ema="1")
        failed = tiny_run(tmp_path / "bad", tiny_data, warm, model_dim="33")
        assert warm.runs == 2
    finally:
        warm.close()
    fresh = tiny_run(tmp_path / "fresh", tiny_data, None, ema="1")
    assert failed.kind == "failed" and failed.reason.startswith("refused: ")
    assert forked.result is not None and fresh.result is not None
    for name in ("sha256", "val_bpb", "train_loss", "bpb_chain", "hash", "stage_keys", "code_bytes", "reads"):
        assert untimed(forked.result[name]) == untimed(fresh.result[name]), name
    assert [r["val_bpb"] for r in forked.reports] == [r["val_bpb"] for r in fresh.reports]
    assert 0.0 < forked.result["train_seconds"] < 5 * fresh.result["train_seconds"] + 1.0


def untimed(found: Any) -> Any:
    """Less what a clock says."""
    kept = lambda one: {k: v for k, v in one.items() if not k.endswith("_s")}  # noqa: E731
    return json.loads(json.dumps(found), object_hook=kept)
