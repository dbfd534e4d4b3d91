"""One run of a foreign script: what it prints becomes a result; whatever it does is one labelled outcome."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from search.common.errors import InfrastructureError
from search.trainers.foreign.adapter import Output
from search.trainers.process import Outcome, TrainerCrashed
from search.workers.record import judged
from tests.conftest import TINY_MODEL
from tests.search.db_helpers import alive
from tests.search.fake_studies import ROOT, wait_for
from tests.search.foreign_studies import SCORE, SCRIPT, foreign_study, run_one

SPACE = """
[fixed]
ITERATIONS = 20
WARMDOWN_ITERS = 10
MAX_WALLCLOCK_SECONDS = 0
[space]
NUM_LAYERS = { low = 2, high = 12 }
MATRIX_LR = { low = 0.001, high = 1.0, log = true }
TTT_ENABLED = { gate = true }
TTT_LR = { low = 0.0001, high = 0.1, log = true, when = "TTT_ENABLED" }
"""
GOOD = {"NUM_LAYERS": 4, "MATRIX_LR": 0.05, "TTT_ENABLED": True, "TTT_LR": 0.003}
CODE = SCRIPT.stat().st_size


def result_of(outcome: Outcome) -> dict[str, object]:
    assert outcome.kind == "finished", outcome.reason
    assert outcome.result is not None
    return outcome.result


def test_a_run_becomes_a_result(tmp_path: Path):
    study = foreign_study(tmp_path, 'warmdown = "WARMDOWN_ITERS"\n' + SCORE + SPACE)
    told: list[float] = []

    def on_report(record: dict[str, float], reports: object) -> None:
        told.append(record["progress"])

    outcome = run_one(study, GOOD, tmp_path / "run", on_report=on_report)
    result = result_of(outcome)
    end = 1.2 - 0.04 + 2.0 * 2.718281828459045**-4.0 + 0.01
    assert result["val_bpb"] == pytest.approx(end - 0.03, abs=1e-8)
    assert result["protocol"] == "legal_ttt_exact" and result["artifact_bytes"] == 4000 + CODE
    assert result["train_seconds"] == 0.04 and result["eval_seconds"] == 4.0
    assert (result["steps"], result["params"], result["code_bytes"]) == (20, 4000, CODE)
    assert told == [0.25, 0.375, 0.5, 0.625, 0.75, 0.875]  # validations stand at every 0.25
    assert [r["lr_scale"] for r in outcome.reports] == pytest.approx([1.0, 1.0, 1.0, 0.75, 0.5, 0.25])
    assert (
        not (tmp_path / "run" / "work").exists() and "Code size" in (tmp_path / "run/train.log").read_text()
    )
    assert (tmp_path / "theirs" / "final_model.ptz").read_bytes() == b"old"
    assert [p.name for p in (tmp_path / "theirs" / "logs").iterdir()] == ["old.txt"]


def test_what_is_off_is_not_set_and_the_shell_does_not_leak_in(tmp_path: Path):
    study = foreign_study(tmp_path, SCORE + SPACE)
    params = {"NUM_LAYERS": 4, "MATRIX_LR": 0.05, "TTT_ENABLED": False}
    shell = {"PATH": os.environ["PATH"], "TTT_ENABLED": "1", "FAULT": "crash", "MY_API_KEY": "x"}
    result = result_of(run_one(study, params, tmp_path / "run", shell=shell))
    assert result["protocol"] == "final_int8_zlib_roundtrip_exact" and result["eval_seconds"] == 1.5
    passed = foreign_study(tmp_path, 'pass = ["FAULT"]\n' + SCORE + SPACE)
    with pytest.raises(TrainerCrashed):
        run_one(passed, params, tmp_path / "again", shell=shell)


def test_named_files_are_weighed_against_the_log(tmp_path: Path):
    named = 'files = ["final_model.ptz", "train_gpt.py"]\nkeep = ["final_model.*"]\n'
    result = result_of(run_one(foreign_study(tmp_path, named + SCORE + SPACE), GOOD, tmp_path / "run"))
    assert (result["artifact_bytes"], result["bytes_from"]) == (4000 + CODE, "files")
    assert (tmp_path / "run" / "kept" / "final_model.ptz").stat().st_size == 4000
    more = 'files = ["final_model.ptz", "train_gpt.py", "data/corpus.txt"]\n'
    result = result_of(run_one(foreign_study(tmp_path, more + SCORE + SPACE), GOOD, tmp_path / "more"))
    assert result["artifact_bytes"] == 4000 + CODE + 7 and "larger of" in str(result["bytes_from"])
    missing = foreign_study(tmp_path, 'files = ["model.bin"]\n' + SCORE + SPACE)
    outcome = run_one(missing, GOOD, tmp_path / "missing")
    assert outcome.kind == "failed" and "no file 'model.bin'" in outcome.reason


def test_two_scores_without_a_rule_are_the_later_one_and_all_are_told(tmp_path: Path):
    result = result_of(run_one(foreign_study(tmp_path, SPACE), GOOD, tmp_path / "run"))
    assert result["protocol"] == "legal_ttt_exact" and "20 steps" in str(result["seen"])
    assert result["labels"][0] == "legal_ttt" and "final_int8_zlib_roundtrip" in result["labels"]  # type: ignore[index, operator]


def test_a_score_by_another_label_than_the_baselines_is_a_failure_unless_that_was_printed_too():
    def one(*labels: str) -> Outcome:
        return judged(
            Outcome("finished", result={"val_bpb": 1.0, "labels": [*labels]}), {"labels": ["ttt", "ttt"]}
        )

    assert one("ttt", "roundtrip").kind == "finished" and not one("ttt").result.get("findings")  # type: ignore[union-attr]
    fallen = one("roundtrip", "roundtrip")
    assert fallen.kind == "failed" and "scored by 'roundtrip', the baseline by 'ttt'" in fallen.reason
    further = one("ngram", "ttt", "ngram")
    assert further.kind == "finished" and "by 'ngram'" in further.result["findings"][0]  # type: ignore[index]
    for other in (
        Outcome("pruned"),
        Outcome("finished", result={"val_bpb": 1.0}),
    ):  # as ours
        assert judged(other, {}) is other


FAULTS = [
    ("nan", "diverged: train_loss is nan at step 8"),
    ("oom", "out of memory: MemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"),
    ("bad_value", "crash: AssertionError: num_heads must be a multiple of num_kv_heads"),
    ("usage", "crash: train_gpt.py: error: argument --x: expected one argument"),
    ("nothing", "no score: "),
    ("no_score", "no score: "),
    ("garbage", "no score: "),
    ("flood", "flood: it printed more than 3,000,000 bytes"),
    ("silent", "silent: nothing printed for 1 s"),
]


@pytest.mark.parametrize(("fault", "reason"), FAULTS, ids=[f[0] for f in FAULTS])
def test_a_misbehaving_script_is_one_labelled_failure(tmp_path: Path, fault: str, reason: str):
    limits = f"max_output_bytes = 3_000_000\nsilent_seconds = {int(fault == 'silent')}\n"
    study = foreign_study(tmp_path, limits + SCORE + SPACE.replace("[space]", f'FAULT = "{fault}"\n[space]'))
    outcome = run_one(study, GOOD, tmp_path / "run")
    assert outcome.kind == "failed" and outcome.reason.startswith(reason), outcome.reason
    kept = sum(p.stat().st_size for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert kept < 3_000_000 and not (tmp_path / "run" / "work").exists()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("fault", ["crash", "killed"])
def test_what_may_be_the_machines_fault_is_tried_again(tmp_path: Path, fault: str):
    study = foreign_study(tmp_path, SCORE + SPACE.replace("[space]", f'FAULT = "{fault}"\n[space]'))
    says = "NCCL says nothing good" if fault == "crash" else "SIGKILL"
    with pytest.raises(TrainerCrashed, match=says):
        run_one(study, GOOD, tmp_path / "run")


def test_forked_children_end_with_the_run_wherever_they_went(tmp_path: Path):
    pids = tmp_path / "pids"
    text = SPACE.replace("[space]", f'FAULT = "forks"\nPIDS = "{pids}"\n[space]')
    result_of(run_one(foreign_study(tmp_path, SCORE + text), GOOD, tmp_path / "run"))
    children = [int(pid) for pid in pids.read_text().split()]
    assert len(children) == 2 and not any(alive(pid) for pid in children)


def test_a_time_limit_and_a_pruner_end_everything(tmp_path: Path):
    pids = tmp_path / "pids"
    slow = SPACE.replace("[space]", f'FAULT = "forks"\nPIDS = "{pids}"\nSTEP_MS = 200\n[space]')
    study = foreign_study(tmp_path, SCORE + slow.replace("forks", "silent"))
    outcome = run_one(study, GOOD, tmp_path / "late", timeout_s=2.0)
    assert outcome.kind == "failed" and outcome.reason == "timeout: still running after 2 s"
    study = foreign_study(tmp_path, SCORE + slow)
    outcome = run_one(study, GOOD, tmp_path / "pruned", on_report=lambda record, reports: "bad enough")
    assert (outcome.kind, outcome.reason) == ("pruned", "bad enough")
    children = [int(pid) for pid in pids.read_text().split()]
    assert len(children) == 2
    wait_for(lambda: not any(alive(pid) for pid in children), 10)


def test_a_command_that_cannot_start_is_refused(tmp_path: Path):
    study = foreign_study(tmp_path, 'command = "{work}/nothing {script}"\n' + SCORE + SPACE)
    outcome = run_one(study, GOOD, tmp_path / "run")
    assert outcome.kind == "failed" and outcome.reason.startswith("refused: cannot start")


def test_a_full_disk_is_the_machines_fault(tmp_path: Path):
    text = "import sys; sys.exit('OSError: [Errno 28] No space left on device')"
    study = foreign_study(tmp_path, SCORE + SPACE)
    (tmp_path / "theirs" / "train_gpt.py").write_text(text)
    with pytest.raises(InfrastructureError, match="No space left"):
        run_one(study, GOOD, tmp_path / "run")


@pytest.mark.slow
def test_our_own_trainer_as_a_foreign_script(tmp_path: Path, tiny_data: dict[str, str]):
    """train_gpt.py through its environment variables and its standard lines alone."""
    settings = {**TINY_MODEL, **tiny_data, "out_dir": "out", "train_log_every": "1", "val_loss_every": "3"}
    fixed = "".join(f'{name.upper()} = "{value}"\n' for name, value in settings.items())
    text = f"""
[fixed]
{fixed}
[space]
MATRIX_LR = {{ low = 0.01, high = 0.1, log = true }}
"""
    path = tmp_path / "own.toml"
    head = "[study]\nnum_reports = 2\n[limits]\nartifact_bytes = 16_000_000\ntrain_seconds = 600\n"
    head += f'eval_seconds = 600\n[trainer]\nscript = "{ROOT / "train_gpt.py"}"\n'
    head += 'files = ["out/artifact.bin", "train_gpt.py"]\nprivate = ["out"]\n'
    path.write_text(head + text)
    from search.study.load import load_study

    study = load_study(path, {})
    outcome = run_one(study, {"MATRIX_LR": 0.03}, tmp_path / "run", timeout_s=200.0, shell=dict(os.environ))
    result = result_of(outcome)
    assert result["protocol"] == "final_int8_zlib_roundtrip_exact" and result["steps"] == 6
    assert 1.0 < float(str(result["val_bpb"])) < 12.0 and int(str(result["artifact_bytes"])) > 10_000
    assert [round(r["progress"], 2) for r in outcome.reports] == [0.5]


def test_lines_that_end_as_on_another_system_are_read_and_a_bar_is_its_last_state():
    lines = list[str]()
    output = Output(io.BytesIO(), lines.append)
    output.feed(b"step:1/2 train_loss:1\r\nfinal val_bpb:1.2\r\n10%\r20%\r30% done\n\xff\xfe\x00\n")
    output.close()
    assert lines[:3] == ["step:1/2 train_loss:1", "final val_bpb:1.2", "30% done"] and len(lines) == 4
