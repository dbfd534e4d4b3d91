"""`scan --try N`: what crashes is found, dropped and told. The fast ones make the runs up; one is real."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from readers.scan import scan
from search.study.load import load_study
from search.trainers.foreign.draft import write
from search.workers import tries
from tests.search.fake_studies import ROOT, caddie, clear

PLAIN = ROOT / "tests" / "search" / "trainers" / "foreign" / "plain_train.py"
SCRIPT = """
import os
SEED = int(os.environ.get("SEED", 1))
ITERATIONS = int(os.environ.get("ITERATIONS", 100))
MATRIX_LR = float(os.environ.get("MATRIX_LR", 0.02))
WIDE_KNOB = int(os.environ.get("WIDE_KNOB", 8))
TILE = int(os.environ.get("TILE", 64))
A_ENABLED = bool(int(os.environ.get("A_ENABLED", 0)))
A_LR = float(os.environ.get("A_LR", 0.1))
B_ENABLED = bool(int(os.environ.get("B_ENABLED", 1)))
B_LR = float(os.environ.get("B_LR", 0.1))
print(f"final val_bpb:{SEED:.4f}")
"""


def drafted(tmp_path: Path) -> Path:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    write(script, tmp_path / "theirs.toml")
    return tmp_path / "theirs.toml"


def tried(
    out: Path, crash: Callable[[dict[str, Any]], str], count: int, monkeypatch: pytest.MonkeyPatch
) -> str:
    """What was told of made-up runs."""
    ran = list[dict[str, Any]]()

    def made_up(self: Any, params: dict[str, Any]) -> str:
        self.ran += 1
        ran.append(dict(params))
        return crash(dict(params))

    monkeypatch.setattr(tries._Runs, "crash", made_up)  # pyright: ignore[reportPrivateUsage]
    told = list[str]()
    tries.try_draft(out, scan(out.with_name("train.py")), count, say=told.append)
    return "\n".join(told)


def test_only_draws_that_were_made_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "train.py").write_text(
        'import os\nB_ENABLED = bool(int(os.environ.get("B_ENABLED", 1)))\nprint("final val_bpb:1.2")\n'
    )
    out = tmp_path / "theirs.toml"
    write(tmp_path / "train.py", out)
    told = tried(out, lambda params: "Error: off" if params else "", 12, monkeypatch)
    assert "nothing is left to draw" in told and "0 of 1 draws ran; 1 crashed" in told
    told = tried(out, lambda params: "", 12, monkeypatch)
    assert "nothing to draw" in told and "0 of 0 draws ran" in told


def test_a_range_that_runs_at_its_default_alone_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "train.py").write_text(
        'import os\nMATRIX_LR = float(os.environ.get("MATRIX_LR", 0.02))\nprint("final val_bpb:1.2")\n'
    )
    out = tmp_path / "theirs.toml"
    write(tmp_path / "train.py", out)
    told = tried(
        out, lambda params: "Error: rate" if params.get("MATRIX_LR", 0.02) != 0.02 else "", 40, monkeypatch
    )
    assert "MATRIX_LR stays as the script has it" in told and "nothing is left to draw" in told


def test_one_setting_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = drafted(tmp_path)
    told = tried(out, lambda p: "Error: wide" if p.get("WIDE_KNOB", 0) > 9 else "", 40, monkeypatch)
    foreign = load_study(out, {}).foreign
    assert foreign is not None
    domain: Any = foreign.variables["WIDE_KNOB"].domain
    assert domain.low == 4 and 8 <= domain.high <= 9
    assert "with ITERATIONS = 1" in told and "Error: wide" in told and "of 40 draws ran; " in told
    assert "crashed when it was tried: Error: wide" in out.read_text()
    assert len(foreign.variables) == 7  # nothing else was taken


def test_choices_and_switches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def crash(params: dict[str, Any]) -> str:
        bad = params.get("TILE") == 128 or params.get("A_ENABLED") or params.get("B_ENABLED") is False
        return "Error" if bad else ""

    out = drafted(tmp_path)
    tried(out, crash, 30, monkeypatch)
    foreign = load_study(out, {}).foreign
    assert foreign is not None
    assert foreign.variables["TILE"].domain.options == (32, 64)  # type: ignore[union-attr]
    assert {*foreign.variables} == {"MATRIX_LR", "WIDE_KNOB", "TILE", "B_LR"}  # A_LR went with its switch
    assert foreign.variables["B_LR"].when is None  # its switch stays on


def test_two_that_clash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def crash(params: dict[str, Any]) -> str:
        return "Error: both" if params.get("WIDE_KNOB", 8) > 8 and params.get("TILE") == 128 else ""

    out = drafted(tmp_path)
    told = tried(out, crash, 40, monkeypatch)
    line = next(line for line in told.splitlines() if "Error: both" in line)
    assert "TILE = 128" in line and "WIDE_KNOB = " in line and "MATRIX_LR" not in line


def test_a_script_that_does_not_run_here_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = drafted(tmp_path)
    before = out.read_text()
    told = tried(out, lambda p: "CUDA is required", 5, monkeypatch)
    assert "as it is does not run here, so no draw was tried: CUDA is required" in told
    assert out.read_text() == before


def test_a_try_needs_a_file_to_edit(tmp_path: Path):
    from typer.testing import CliRunner

    from search.cli import app

    drafted(tmp_path)
    answer = CliRunner().invoke(app, ["scan", str(tmp_path / "train.py"), "--try", "3"])
    assert answer.exit_code == 2 and "no --out" in answer.output


@pytest.mark.slow
def test_a_trainer_with_arguments_is_scanned_tried_and_searched(tmp_path: Path):
    shutil.copy(PLAIN, tmp_path / "plain_train.py")
    text = (tmp_path / "plain_train.py").read_text()
    trap = '    if len(args.optimizer * args.fused) == 4 and args.optimizer[0] == "m":\n'
    trap += '        raise TypeError("muon")\n'
    (tmp_path / "plain_train.py").write_text(text.replace("    end = 3.0", trap + "    end = 3.0"))
    study = tmp_path / "plain.toml"
    drawn = caddie("scan", str(tmp_path / "plain_train.py"), f"--out={study}", "--try=4")
    assert drawn.returncode == 0 and "a loss in nats per token" in drawn.stdout, drawn.stderr
    assert "TypeError: muon" in drawn.stdout, drawn.stdout
    try:
        ran = caddie(f"--study={study}", f"--home={tmp_path}", "--trials=3", "--workers=1")
    finally:
        clear(tmp_path)
    said = ran.stdout
    assert ran.returncode == 0 and "plain: 3 feasible trials" in said, ran.stderr + said
    assert "nats/token" in said and "--learning-rate=" in said
    assert "BPB" not in said and "bits" not in said and "val_bpb" not in said
    configs = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "plain").glob("*/config.json")]
    assert len(configs) == 4 and all(c["settings"]["max_iters"] == 40 for c in configs)
