"""The lean script: its bytes, and that it gives the whole trainer's losses, artifact and BPB bit for bit."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bundle import names
from bundle.lean import FOREIGN, Blanks, decided_by, lean, lean_tree, stand_ins, whole_shelf
from bundle.one_file import resolve_layer
from techniques import catalog
from techniques.config import Resolved, read_preset, resolve
from tests.bundle.test_bundle import alone, crowd, resolved_of
from tests.conftest import ROOT, run_trainer
from tests.test_presets import small

# preset -> bytes at most: 1.2 times what its published script takes when compressed the same way, naive 1.27
BYTES = {"naive": 16_000, "pr414": 21_600, "pr549": 26_280, "pr1019": 28_920, "pr1855": 38_400}
LOSS = re.compile(r"step:(\d+)/\d+ train_loss:(\S+)")


def check_same_bits(settings: dict[str, str], resolved: Resolved, folder: Path, *extra: str) -> None:
    """Runs the trainer and the lean script and compares all that a run leaves."""
    ran = run_trainer({**settings, "out_dir": str(folder / "whole")}, *extra)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    whole = json.loads((folder / "whole" / "result.json").read_text())
    script = folder / "alone" / "train_gpt.py"
    script.parent.mkdir()
    script.write_bytes(lean(resolved))
    lone = alone(script)
    assert lone.returncode == 0, lone.stderr[-2000:]
    artifact = (script.parent / "artifact.bin").read_bytes()
    assert hashlib.sha256(artifact).hexdigest() == whole["sha256"]
    said = ran.stdout.rpartition("seed:")[2]
    assert LOSS.findall(lone.stdout) == LOSS.findall(said) != []
    exact = f"_exact val_loss:{whole['val_loss']:.8f} val_bpb:{whole['val_bpb']:.8f}\n"
    assert exact in lone.stdout
    assert f"Code size: {script.stat().st_size} bytes" in lone.stdout
    assert whole["artifact_bytes"] == script.stat().st_size + len(artifact)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.long)], ids=["naive", "many"])
def test_the_lean_script_gives_the_same_bits(tiny: dict[str, str], tmp_path: Path, many: bool) -> None:
    settings = crowd(tiny) if many else tiny
    check_same_bits(settings, resolved_of(settings), tmp_path)


@pytest.mark.slow
def test_a_model_that_is_pruned_to_a_size_is_the_one_that_is_exported(
    tiny: dict[str, str], tmp_path: Path
) -> None:
    """The script's bytes are part of the target."""
    settings = {**tiny, "prune": "1", "prune.target_bytes": "39500"}
    check_same_bits(settings, resolved_of(settings), tmp_path)
    told = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert 39_450 < told["artifact_bytes"] <= 39_500, told["activity"]["prune"]


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("preset", ["pr414", "pr518", "pr549", "pr569", "pr1263", "pr1019", "pr1855"])
def test_a_presets_lean_script_gives_the_same_bits(preset: str, tiny: dict[str, str], tmp_path: Path) -> None:
    settings = small(preset, tiny)
    layers = {"preset": read_preset(preset), "command line": settings}
    check_same_bits(settings, resolve(layers, catalog.metadata()), tmp_path, f"--preset={preset}")


@pytest.mark.parametrize(
    "preset", ["naive", *(pytest.param(p, marks=pytest.mark.long) for p in BYTES if p != "naive")]
)
def test_bytes(preset: str) -> None:
    assert len(lean(resolve_layer({"preset": preset}))) <= BYTES[preset]


def tree_of(resolved: Resolved) -> ast.Module:
    shelf = whole_shelf()
    return lean_tree(stand_ins(resolved, Blanks()), decided_by(resolved, shelf), shelf)


def test_a_setting_decides_nothing_about_another_record_of_its_name(tiny: dict[str, str]) -> None:
    """gptq's act_order is off, awq_lite solves by falling diagonal all the same."""
    settings = {**tiny, "gptq": "1", "gptq.act_order": "0", "awq_lite": "1"}
    solve = next(n for n in tree_of(resolved_of(settings)).body if getattr(n, "name", "") == "gptq_solve")
    assert "config.act_order" in ast.unparse(solve)


def test_a_lean_script_holds_nothing_of_the_lab(tiny: dict[str, str], tmp_path: Path) -> None:
    resolved = resolved_of({**tiny, "xsa": "1", "xsa.last_n": "1"})
    tree = tree_of(resolved)
    found = names.names_of(tree)
    assert {"Xsa", "Trainer", "Muon"} <= found.bound
    lab = {"audit", "ledger", "Ledger", "verify_bytes", "from_environment", "help_text"}
    assert not lab & set(found.count)
    text = names.tight(tree)
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(ast.unparse(tree)))
    (tmp_path / "lean.py").write_text(ast.unparse(tree))
    check = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821,F822,F823,F811"]
    ran = subprocess.run([*check, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


def test_names_are_ours_alone() -> None:
    """What `renamed` may rename, no library calls by the same name."""
    import numpy as np
    import sentencepiece
    import torch

    parameter = torch.nn.Parameter(torch.zeros(1))
    objects = [torch, torch.nn, torch.nn.functional, torch.Tensor, torch.optim.AdamW([parameter])]
    objects += [torch.nn.Linear(1, 1), torch.distributed, torch.cuda, torch.linalg, torch.autograd.Function]
    objects += [
        np,
        np.ndarray,
        np.random.Generator,
        sentencepiece.SentencePieceProcessor,
        Path,
        str,
        bytes,
        dict,
    ]
    theirs = {name for thing in objects for name in dir(thing) if not name.startswith("__")}
    root = ROOT
    files = [
        root / "train_gpt.py",
        *(p for room in ("trainer", "techniques", "corpus") for p in (root / room).rglob("*.py")),
    ]
    ours = {n for p in files for n in names.names_of(ast.parse(p.read_text(encoding="utf-8"))).bound}
    assert not (ours & theirs) - FOREIGN


def test_the_command_writes_it(tmp_path: Path) -> None:
    words = ["export", "--preset", "naive", "--to", str(tmp_path / "x"), "--format", "lean"]
    ran = subprocess.run([sys.executable, "search.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    script = tmp_path / "x" / "train_gpt.py"
    assert f"{script.stat().st_size:,} code bytes" in ran.stdout
    assert script.read_bytes() == lean(resolve_layer({"preset": "naive"}))
    refused = subprocess.run([sys.executable, "search.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.startswith("error: ")
