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
from bundle.lean import (
    FOREIGN,
    LAB,
    LAB_CALLS,
    Blanks,
    decided_by,
    lean,
    lean_source,
    lean_tree,
    stand_ins,
    whole_shelf,
)
from bundle.one_file import resolve_layer
from bundle.reach import reachable
from techniques import catalog
from techniques._quant import TRIES
from techniques.config import Resolved, read_preset, resolve, stage_keys
from tests.bundle.test_bundle import alone, crowd, crowds_of, resolved_of
from tests.conftest import ROOT, run_trainer
from tests.test_presets import small

# preset -> bytes at most: 1.2 times what its published script takes when compressed the same way, naive 1.27
BYTES = {"naive": 16_000, "pr414": 21_600, "pr549": 26_280, "pr1019": 28_920, "pr1855": 38_400}
LOSS = re.compile(r"step:(\d+)/\d+ train_loss:(\S+)")


def test_an_artifact_names_no_folder_of_this_machine(tiny: dict[str, str]) -> None:
    resolved = resolved_of(tiny)
    assert resolved.config.data_path not in str(resolved.head()) and resolved.head()["num_layers"] == 3


def check_same_bits(settings: dict[str, str], resolved: Resolved, folder: Path, *extra: str) -> None:
    """Runs the trainer and the lean script and compares all that a run leaves."""
    ran = run_trainer({**settings, "out_dir": str(folder / "whole")}, *extra)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    whole = json.loads((folder / "whole" / "result.json").read_text())
    script = folder / "alone" / "train_gpt.py"
    script.parent.mkdir()
    script.write_bytes(lean(resolved))
    data = script.parent / "elsewhere"  # another folder, another place: the same artifact
    data.symlink_to(settings["data_path"])
    lone = alone(script, DATA_PATH=str(data))
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


# device, attention, dtype -> whether the CPU's blocked attention may run
KERNELS: dict[tuple[str, ...], bool] = {
    ("cuda", "auto", "auto"): False,
    ("cpu", "auto", "float32"): False,
    ("cpu", "sdpa", "bfloat16"): False,
    ("cpu", "auto", "bfloat16"): True,
    ("auto", "auto", "auto"): True,
}


@pytest.mark.parametrize("told", KERNELS)
def test_a_script_holds_no_kernel_that_its_settings_rule_out(
    told: tuple[str, ...], tiny: dict[str, str]
) -> None:
    names = ("device", "attention", "compute_dtype")
    tree = tree_of(resolved_of({**tiny, **dict(zip(names, told, strict=True))}))
    defined = {getattr(n, "name", "") for n in tree.body}
    assert ("BlockedAttention" in defined) == KERNELS[told] and "sdpa" in defined


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["blocked", "auto"])
def test_a_script_attends_through_the_run_s_kernel(tiny: dict[str, str], tmp_path: Path, kernel: str) -> None:
    settings = {**tiny, "attention": kernel, "compute_dtype": "bfloat16"}
    check_same_bits(settings, resolved_of(settings), tmp_path)
    told = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert told["attention"] == {"auto": "blocked_to_2048_else_sdpa"}.get(kernel, kernel)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target", "within"), [("prune", 39_500, 50), ("sdclip", 38_500, 200)])
def test_a_model_that_is_brought_to_a_size_is_the_one_that_is_exported(
    tiny: dict[str, str], tmp_path: Path, name: str, target: int, within: int
) -> None:
    """The script's bytes, which vary with the folder's name, are part of the target, which is below what
    either leaves untouched (38,800 to 39,000 under sdclip, whose k no use of the bytes left betters)."""
    settings = {**tiny, name: "1", f"{name}.target_bytes": str(target)}
    check_same_bits(settings, resolved_of(settings), tmp_path)
    told = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert target - within < told["artifact_bytes"] <= target, told["activity"][name]
    assert told["activity"][name]["packings"] <= TRIES and told["activity"][name]["fits"]


OTHERWISE: dict[str, str | int] = {
    "device": "auto",
    "compile": "off",
    "attention": "sdpa",
    "num_threads": 16,
    "train_log_every": 100,
    "val_batch_size": 100_000,
    "num_reports": 8,
    "run_id": "elsewhere",
    "resume": 0,
}


@pytest.mark.parametrize("name", OTHERWISE)
@pytest.mark.parametrize("target", [0, 39_000])
def test_tensors_of_a_size_are_kept_for_one_script(tiny: dict[str, str], name: str, target: int) -> None:
    """Its bytes are part of the target, so the stage's key goes by the script's text."""
    base = {**tiny, "sdclip": 1, "sdclip.target_bytes": target}
    one, other = (
        resolve({"file": base | more}, catalog.metadata()) for more in ({}, {name: OTHERWISE[name]})
    )
    keys = [stage_keys(resolved, {"": "c"}, "d")["quantize"] for resolved in (one, other)]
    assert (keys[0] != keys[1]) == bool(target and lean_source(one) != lean_source(other))


def test_tensors_of_a_size_are_kept_for_one_way_to_write_a_script(
    tiny: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aiming, plain = (
        resolved_of({**tiny, "prune": "1", **more}) for more in ({"prune.target_bytes": "9"}, {})
    )
    (tmp_path / "bundle").mkdir()
    keys = []
    for text in ("a = 1", "a = 2"):
        (tmp_path / "bundle" / "passes.py").write_text(text)
        monkeypatch.setattr(catalog, "TECHNIQUES_FOLDER", tmp_path / "techniques")
        keys.append([stage_keys(resolved, {"": "c"}, "d")["quantize"] for resolved in (aiming, plain)])
    assert keys[0][0] != keys[1][0] and keys[0][1] == keys[1][1]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_technique_in_a_lean_script_gives_the_same_bits(tiny: dict[str, str], tmp_path: Path) -> None:
    """Whichever fill one slot come one after the other."""
    for k, settings in enumerate(crowds_of({**tiny, "val_tokens": "640"})):
        (tmp_path / str(k)).mkdir()
        check_same_bits(settings, resolved_of(settings), tmp_path / str(k))


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
    solve = next(n for n in tree_of(resolved_of(settings)).body if getattr(n, "name", "") == "feedback")
    assert "config.act_order" in ast.unparse(solve)


KEEPS = """
class Sums:
    def __init__(self, tensors):
        self.tensors, self.calls, self.seen = tensors, 0, 0
        self.last = tensors[0]
    def add(self, given, more):
        steps, facts = 0, {}
        done = 0
        facts |= {"word": 1}
        for total, x in zip(self.tensors, given):
            total += x
            steps += 1
        given *= 2
        self.last -= 1
        self.calls += 1
        for _ in more:
            pass
        for _ in self.tensors[:2]:
            done += 1
        list(more)
        unread = [x for x in given], len(given)
Sums([1]).add([2], iter([3]))
"""


def test_what_changes_in_place_stays(tiny: dict[str, str]) -> None:
    """`total += x` is a tensor that others read (swa's sums), `steps += 1` a number that nobody reads."""
    text = ast.unparse(reachable(ast.parse(KEEPS)))
    kept = ("total += x", "given *= 2", "self.last -= 1", "for _ in more", "list(more)", "for x in given]")
    assert not [line for line in kept if line not in text], text
    assert not [word for word in ("steps", "done", "facts", "calls", "seen") if word in text], text
    swa = next(
        n for n in tree_of(resolved_of({**tiny, "swa": "1"})).body if getattr(n, "name", "") == "SwaAverager"
    )
    assert "total += p.detach()" in ast.unparse(swa)


def test_the_log_takes_the_code_under_any_locale(tiny: dict[str, str]) -> None:
    log = next(n for n in tree_of(resolved_of(tiny)).body if getattr(n, "name", "") == "Log")
    assert "utf-8" in ast.unparse(log)  # packed code is latin-1 text; an ASCII locale could not write it


def test_no_technique_has_a_part_of_the_lab_s_names() -> None:
    """What the lean script leaves out by name must be the lab's alone."""
    taken = []
    for path in sorted((ROOT / "techniques").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if getattr(node, "name", "") in LAB | LAB_CALLS:
                taken.append(f"{path.name}: {getattr(node, 'name', '')}")
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in LAB:
                taken.append(f"{path.name}: {node.id}")
    assert not taken, f"the lean script would leave these out, give them other names: {taken}"


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
    shared = (ours & theirs) - FOREIGN
    assert not shared


def test_the_command_writes_it(tmp_path: Path) -> None:
    words = ["export", "--preset", "naive", "--to", str(tmp_path / "x"), "--format", "lean"]
    ran = subprocess.run([sys.executable, "search.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    script = tmp_path / "x" / "train_gpt.py"
    assert f"{script.stat().st_size:,} code bytes" in ran.stdout
    assert script.read_bytes() == lean(resolve_layer({"preset": "naive"}))
    refused = subprocess.run([sys.executable, "search.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.startswith("error: ")
