"""The scan: three styles of reading the environment, scripts that cannot be understood; nothing is run."""

from __future__ import annotations

import base64
import lzma
import tomllib
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from readers import literals
from readers.log_reader import LogReader, Rules
from readers.scan import Scan, names_read, scan
from search.space.foreign import ForeignSpace
from search.space.space import distribution
from search.study.foreign import Foreign
from search.study.load import load_study
from search.trainers.foreign.draft import draft, score_rule, write
from search.trainers.foreign.draws import draws
from search.trainers.foreign.run import ForeignTrainer
from search.trainers.trainer import trainer_of
from techniques.base import Choice, Float, Int
from techniques.unanswered import NAMES
from tests.search.foreign_studies import SCRIPT

CLASSES = """
import os
raise SystemExit("a scan never runs this")
TTT_PREFIX = "TTT_LR"
class Hyperparameters:
    data_path = os.environ.get("DATA_PATH", "./data/datasets/fineweb10B_sp1024")
    train_files = os.path.join(data_path, "x")
    run_id = os.environ.get("RUN_ID", str(uuid.uuid4()))
    seed = int(os.environ.get("SEED", 1337))
    train_batch_tokens = int(os.environ.get("TRAIN_BATCH_TOKENS", 512 * 1024))
    max_wallclock_seconds = float(os.environ.get("MAX_WALLCLOCK_SECONDS", 600.0))
    warmdown_iters = int(os.environ.get("WARMDOWN_ITERS", "1200"))
    matrix_lr = float(os.environ.get("MATRIX_LR", 0.04))
    muon_momentum = float(os.environ.get("MUON_MOMENTUM", 0.95))
    muon_wd = float(os.environ.get("MUON_WD", 0.04))
    grad_clip_norm = float(os.environ.get("GRAD_CLIP_NORM", 0.0))
    num_layers = int(os.environ.get("NUM_LAYERS", 11))
    bigram_vocab_size = int(os.environ.get("BIGRAM_VOCAB_SIZE", 2048))
    ve_enabled = bool(int(os.environ.get("VE_ENABLED", "1")))
    ve_dim = int(os.environ.get("VE_DIM", 128))
    ttt_enabled = os.environ.get("TTT_ENABLED", "0") == "1"
    ttt_lr = float(os.environ.get(TTT_PREFIX, 0.002))
    ttt_epochs = int(os.environ.get("TTT_EPOCHS", 3))
rank = int(os.environ["RANK"])
required = os.environ["MUST_BE_SET"]
log0(f"final_int8_zlib_roundtrip val_loss:{a:.4f} val_bpb:{b:.4f} eval_time:{t:.0f}ms")
log0(f"final_int8_zlib_roundtrip_exact val_loss:{a:.8f} val_bpb:{b:.8f}")
log0(f"legal_ttt_exact val_loss:{a:.8f} " f"val_bpb:{b:.8f}")
log0(f"DIAGNOSTIC post_ema val_loss:{a:.4f} val_bpb:{b:.4f}")
log0(f"step:{i}/{n} val_loss:{a:.4f} val_bpb:{b:.4f}")
log0(f"Total submission size int6+zstd: {n} bytes")
log0(f"{name}_exact val_bpb:{b:.8f}")
"""
HELPERS = '''
import os
from os import environ as E, getenv
def env(name, default, cast=str):
    """Reads one."""
    return cast(os.environ.get(name, default))
def flag(name: str, default: bool = False) -> bool:
    return env(name, "1" if default else "0").lower() in ("1", "true")
env_int = lambda key, d: int(os.environ.get(key, d))
LR = env("EMBED_LR", 0.6, float)
LAYERS = env_int("NUM_LAYERS", 9)
use = flag("USE_EMA", True)
decay = env("EMA_DECAY", 0.997, cast=float)
depth = int(getenv("LOOPS", "2"))
alpha = float(E.get("LORA_ALPHA") or 16)
yes = E.get("FUSED", "true").lower() == "true"
for layer in range(3):
    os.environ.get(f"LAYER_{layer}_BITS", "6")
print("val_loss:%.4f" % x)
print("score final val_bpb:{:.4f}".format(x))
'''
DATACLASS = """
import os
from dataclasses import dataclass, fields
@dataclass
class Config:
    num_layers: int = 9
    matrix_lr: float = 4e-2
    use_swa: bool = False
    swa_every: int = 50
    optimizer: str = "muon"
def load():
    env = os.environ
    return Config(**{f.name: f.type(env.get("GPT_" + f.name.upper(), f.default)) for f in fields(Config)})
"""


def scanned(tmp_path: Path, text: str) -> Scan:
    path = tmp_path / "train_gpt.py"
    path.write_text(text, encoding="utf-8")
    return scan(path)


def drafted(tmp_path: Path, found: Scan) -> tuple[Foreign, dict[str, Any]]:
    """The draft, loaded as a study."""
    out = tmp_path / "theirs.toml"
    out.write_text(draft(found, out), encoding="utf-8")
    study = load_study(out, {})
    assert study.foreign is not None and study.name == "theirs"
    return study.foreign, tomllib.loads(out.read_text(encoding="utf-8"))


def test_a_class_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = scanned(tmp_path, CLASSES)
    kinds = {name: (read.kind, read.default) for name, read in found.reads.items()}
    assert kinds["TRAIN_BATCH_TOKENS"] == ("int", 524288) and kinds["WARMDOWN_ITERS"] == ("int", 1200)
    assert kinds["VE_ENABLED"] == ("bool", True) and kinds["TTT_ENABLED"] == ("bool", False)
    assert kinds["TTT_LR"] == ("float", 0.002) and kinds["MUST_BE_SET"] == ("str", None)
    assert found.reads["RUN_ID"].note.startswith("computed default str(uuid") and "RANK" not in kinds
    assert (
        found.distributed
        and found.reads["SEED"].line
        == CLASSES.splitlines().index('    seed = int(os.environ.get("SEED", 1337))') + 1
    )
    assert [*found.labels] == [
        "final_int8_zlib_roundtrip",
        "final_int8_zlib_roundtrip_exact",
        "legal_ttt_exact",
    ]
    assert score_rule(found) == ["legal_ttt_exact", "final_int8_zlib_roundtrip_exact"]
    assert [*found.sizes] == ["int6+zstd"] and any(
        "score label built at run time" in odd for odd in found.odd
    )
    foreign, tables = drafted(tmp_path, found)
    assert foreign.score == ()  # the last that a run prints; the draft names what the script has
    text = (tmp_path / "theirs.toml").read_text(encoding="utf-8")
    assert '# score = ["legal_ttt_exact", "final_int8_zlib_roundtrip_exact"]' in text
    assert (foreign.wallclock, foreign.warmdown) == ("MAX_WALLCLOCK_SECONDS", "WARMDOWN_ITERS")
    assert foreign.seed == "SEED"  # for replicates
    assert foreign.fixed["SEED"] == 1337 and foreign.fixed["DATA_PATH"] == "./data/datasets/fineweb10B_sp1024"
    assert foreign.fixed["GRAD_CLIP_NORM"] == 0.0 and "MUST_BE_SET" not in foreign.fixed
    space = foreign.variables
    assert space["MATRIX_LR"].domain == Float(0.01, 0.16, True) and space["MUON_WD"].domain == Float(
        0.01, 0.16, True
    )
    assert space["MUON_MOMENTUM"].domain == Float(0.85, 0.9833) and space["NUM_LAYERS"].domain == Int(9, 13)
    assert space["VE_ENABLED"].gate and space["VE_DIM"].when == ("VE_ENABLED", (True,))
    assert space["VE_DIM"].domain == Choice((64, 128, 256))
    assert space["TTT_LR"].when == space["TTT_EPOCHS"].when == ("TTT_ENABLED", (True,))
    assert tables["limits"]["artifact_bytes"] == 16_000_000
    for gpus in ((), ("0", "1")):  # torchrun where there is a GPU
        monkeypatch.setattr("search.trainers.foreign.draft.gpu_numbers", partial(tuple, gpus))
        _, tables = drafted(tmp_path, found)
        assert ("torch.distributed.run" in tables["trainer"]["command"]) == bool(gpus)
        assert "torch.distributed.run" in (tmp_path / "theirs.toml").read_text()


def test_helper_functions_and_aliases(tmp_path: Path):
    found = scanned(tmp_path, HELPERS)
    kinds = {name: (read.kind, read.default) for name, read in found.reads.items()}
    assert kinds == {
        "EMBED_LR": ("float", 0.6),
        "NUM_LAYERS": ("int", 9),
        "USE_EMA": ("bool", True),
        "EMA_DECAY": ("float", 0.997),
        "LOOPS": ("int", 2),
        "LORA_ALPHA": ("float", 16.0),
        "FUSED": ("bool", True),
    }
    assert found.reads["FUSED"].on == "true"
    assert len(found.odd) == 1 and "LAYER_{layer}_BITS" in found.odd[0] and "line 18" in found.odd[0]
    assert [*found.labels] == ["score final"]
    foreign, _ = drafted(tmp_path, found)
    assert foreign.variables["EMA_DECAY"].when == ("USE_EMA", (True,))
    assert foreign.variables["FUSED"].text(False) == "false" and [*found.labels] == ["score final"]


def test_a_dataclass_whose_names_are_built(tmp_path: Path):
    found = scanned(tmp_path, DATACLASS)
    assert {n: (r.kind, r.default) for n, r in found.reads.items()} == {
        "GPT_NUM_LAYERS": ("int", 9),
        "GPT_MATRIX_LR": ("float", 0.04),
        "GPT_USE_SWA": ("bool", False),
        "GPT_SWA_EVERY": ("int", 50),
        "GPT_OPTIMIZER": ("str", "muon"),
    }
    assert found.odd == []
    foreign, _ = drafted(tmp_path, found)
    assert foreign.variables["GPT_USE_SWA"].gate and foreign.fixed["GPT_OPTIMIZER"] == "muon"


def test_every_published_name_is_found_and_drafts_a_study_that_loads(tmp_path: Path):
    names = NAMES - {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    lines = ["import os"]
    for i, name in enumerate(sorted(names)):
        default, cast = [("3", "int"), ("0.02", "float"), ('"0"', "bool")][i % 3]
        wrap = f"bool(int(os.environ.get({name!r}, {default})))" if cast == "bool" else ""
        lines.append(f"x{i} = " + (wrap or f"{cast}(os.environ.get({name!r}, {default}))"))
    found = scanned(tmp_path, "\n".join(lines))
    assert set(found.reads) == names and not found.odd
    foreign, _ = drafted(tmp_path, found)
    assert {*foreign.fixed, *foreign.variables} == names


def test_the_fake_trainer_is_read_whole():
    assert {"MATRIX_LR", "TTT_ENABLED", "FAULT", "PIDS"} < names_read(SCRIPT)


def test_no_reads_and_no_scores(tmp_path: Path):
    found = scanned(tmp_path, "print('hello')\n")
    assert not found.reads and not found.labels
    (tmp_path / "out.toml").unlink(missing_ok=True)
    told = write(found.path, tmp_path / "out.toml")
    assert "nothing to search" in told and "Name what to search under [space], then: python" in told
    with pytest.raises(ValueError, match=r"overwrites nothing, but .*out\.toml exists"):
        write(found.path, tmp_path / "out.toml")
    assert write(found.path, None).startswith("# Drafted from train_gpt.py")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"def f(:\n", "is none: invalid syntax"),
        (b"x = '\xff\xfe'\n", "is none: "),
        (b"a\0b", "source code string cannot contain null bytes"),
        (b"x = " + b"(" * 5000, "many nested parentheses|cannot be parsed"),
    ],
)
def test_what_is_no_python_is_one_error(tmp_path: Path, data: bytes, says: str):
    path = tmp_path / "train_gpt.py"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=says):
        scan(path)
    assert names_read(path) == set()


def test_other_encodings_that_python_declares(tmp_path: Path):
    path = tmp_path / "train_gpt.py"
    path.write_bytes(
        b"# -*- coding: latin-1 -*-\nimport os\nx = os.getenv('NAME_\xe9', '\xe9')\ny = os.getenv('A', 1)\n"
    )
    assert set(scan(path).reads) == {"NAME_\xe9", "A"}


def test_four_thousand_lines(tmp_path: Path):
    body = [f"v{i} = float(os.environ.get('V{i}_LR', {i + 1}e-4)) if v{i - 1} else 0" for i in range(1, 4000)]
    found = scanned(tmp_path, "import os\nv0 = 1\n" + "\n".join(body))
    assert len(found.reads) == 3999 and found.reads["V3999_LR"].default == pytest.approx(0.4)


def test_odd_defaults_and_names_never_break_the_draft(tmp_path: Path):
    text = """
import os
a = os.environ.get("A", 'quote " and \\\\ and \\n')
b = float(os.environ.get("B_LR", "inf"))
c = int(os.environ.get("C", "many"))
d = float(os.environ.get("D", -1.5))
e = os.environ.get("E", None)
f = int(os.environ.get("F", 10**400 if 0 else 7))
g = bool(int(os.environ.get("G_ENABLED", 0)))
h = bool(int(os.environ.get("G_ENABLED_ENABLED", 0)))
i = int(os.environ.get("A", 3))
"""
    found = scanned(tmp_path, text)
    foreign, _ = drafted(tmp_path, found)
    assert foreign.fixed["A"] == 'quote " and \\ and \n' and foreign.fixed["D"] == -1.5
    assert "C" not in foreign.fixed and any("A is read again" in odd for odd in found.odd)
    assert Rules().score == ()


TRUTHS = """
import os
a = bool(os.environ.get("A_MODE"))
b = "B_MODE" in os.environ
c = 1 if not os.environ.get("C_MODE", False) else 2
d = bool(os.environ.get("D_MODE", "yes"))
if "E_LR" in os.environ:
    e = float(os.environ["E_LR"])
"""


def test_gates_by_truth_and_by_presence_are_off_when_empty_or_not_set(tmp_path: Path):
    foreign, _ = drafted(tmp_path, scanned(tmp_path, TRUTHS))
    space = ForeignSpace(foreign, {n: distribution(v.domain) for n, v in foreign.variables.items()})
    assert {*foreign.variables} == {
        "A_MODE",
        "B_MODE",
        "C_MODE",
        "D_MODE",
    }  # E_LR is a number
    off = space.environment({name: False for name in foreign.variables})
    assert off == {"A_MODE": "", "C_MODE": "", "D_MODE": ""}  # B_MODE is not set at all
    assert space.environment({name: True for name in foreign.variables}) == {
        n: "1" for n in foreign.variables
    }
    for wrong in ('gate = true, unset = true, off = "0"', 'gate = true, on = "", off = ""'):
        path = tmp_path / "wrong.toml"
        path.write_text(
            (tmp_path / "theirs.toml").read_text().partition("[space]")[0] + f"[space]\nX = {{ {wrong} }}"
        )
        with pytest.raises(ValueError, match="is a gate"):
            load_study(path, {})


PACKED = """
import lzma as L, base64 as B, zlib
exec({call})
"""


@pytest.mark.parametrize("how", ["raw", "xz", "zlib", "unknown", "broken"])
def test_packed_code_is_read_as_text_and_never_run(tmp_path: Path, how: str):
    raw = {"format": lzma.FORMAT_RAW, "filters": [{"id": lzma.FILTER_LZMA2}]}
    data = CLASSES.encode()
    calls = {
        "raw": f"L.decompress(B.b85decode({base64.b85encode(lzma.compress(data, **raw)).decode()!r}),"
        'format=L.FORMAT_RAW,filters=[{"id":L.FILTER_LZMA2}])',
        "xz": f"L.decompress(B.b64decode({base64.b64encode(lzma.compress(data)).decode()!r})).decode()",
        "zlib": f"compile(zlib.decompress({zlib.compress(data)!r}), 'x', 'exec')",
        "unknown": "open('other.py').read()",
        "broken": "L.decompress(B.b85decode('!!'))",
    }
    found = scanned(tmp_path, PACKED.format(call=calls[how]))
    packed = how in ("raw", "xz", "zlib")
    assert ("MATRIX_LR" in found.reads) == packed and ("legal_ttt_exact" in found.labels) == packed
    said = "never run" if packed else "runs text that is not known here"
    assert said in found.odd[0] and found.odd[0].startswith("line 3: ")


def test_what_is_left_to_the_script_is_told(tmp_path: Path):
    text = "import os\nx = {**os.environ, 'A': 1}\ny = os.environ.items()\nload('.env')\n"
    text += "name, rate, rest = sys.argv[0], float(sys.argv[1]), sys.argv[2:]\n"
    told = "\n".join(scanned(tmp_path, text).odd)
    assert told.count("takes a word of the command line by its place") == 2
    assert told.count("takes the whole environment") == 2 and "reads .env, which no run gets" in told


KINDS = """
import os
def i(name, d): return int(os.environ.get(name, d))
def f(name, d): return float(os.environ.get(name, d))
LOGIT_SOFTCAP, PROFILE_LR = f("LOGIT_SOFTCAP", 30.0), f("PROFILE_LR", 0.02)
LOG_DIR, ARTIFACT_LIMIT_BYTES = os.environ.get("LOG_DIR", "x"), i("ARTIFACT_LIMIT_BYTES", 16000000)
USE_WANDB, TIE_EMBEDDINGS = i("USE_WANDB", 0), bool(i("TIE_EMBEDDINGS", 1))
TTT_ENABLED, SLOT_ENABLED = bool(i("TTT_ENABLED", 1)), bool(i("SLOT_ENABLED", 0))
PREQUANT_ONLY, QUICK = bool(i("PREQUANT_ONLY", 0)), bool(i("QUICK_ENABLED", 0))
ROPE_DIMS, ODD_DIMS = i("ROPE_DIMS", 16), i("ODD_DIMS", 6)
ZSTD_LEVEL, EMBED_BITS, LGWIN = i("ZSTD_LEVEL", 22), i("EMBED_BITS", 7), i("BROTLI_LGWIN", 20)
NUM_LAYERS, LOOP_START, LOOP_END = i("NUM_LAYERS", 11), i("LOOP_START", 3), i("LOOP_END", 5)
XSA_LAST_N, GROUPS, USE_GAIN = i("XSA_LAST_N", 11), i("GROUPS", 4), f("USE_GAIN", 0.0)
if QUICK_ENABLED:
    sys.exit()
assert ROPE % GROUPS == 0
def main():
    "final val_bpb:{:.4f} is printed"
    if h.quick_enabled:
        return
"""


def test_what_a_script_forbids_is_not_drawn(tmp_path: Path):
    found = scanned(tmp_path, KINDS)
    foreign, _ = drafted(tmp_path, found)
    space = foreign.variables
    fixed = foreign.fixed
    assert {"LOGIT_SOFTCAP", "PROFILE_LR", "SLOT_ENABLED"} <= {*space} and not found.labels
    for name in (
        *("LOG_DIR", "ARTIFACT_LIMIT_BYTES", "USE_WANDB", "TIE_EMBEDDINGS", "TTT_ENABLED"),
        *("PREQUANT_ONLY", "QUICK_ENABLED", "GROUPS", "USE_GAIN"),
    ):
        assert name in fixed, name
    assert fixed["TTT_ENABLED"] == "1" and fixed["QUICK_ENABLED"] == "0"
    assert space["ROPE_DIMS"].domain == Choice((8, 16, 32)) and space["ODD_DIMS"].domain == Choice((6, 12))
    assert space["ZSTD_LEVEL"].domain == Int(11, 22) and space["EMBED_BITS"].domain == Int(3, 8)
    assert space["BROTLI_LGWIN"].domain.high <= 24 and space["XSA_LAST_N"].domain.high == 11  # type: ignore[union-attr]
    start = space["LOOP_START"].domain
    end = space["LOOP_END"].domain
    assert (start, end) == (Int(1, 4), Int(4, 5)) and space["NUM_LAYERS"].domain == Int(11, 13)


def test_a_script_without_a_size_line_is_told_before_anything_runs(tmp_path: Path):
    found = scanned(tmp_path, KINDS)
    out = tmp_path / "a b.toml"
    told = write(found.path, out)
    assert "no size line: name what counts in [trainer] files" in told and f"--study '{out}'" in told
    assert "no size line" not in draft(scanned(tmp_path, CLASSES), out)


def test_f_strings_of_a_newer_python_are_read():
    text = 'log(f"{", ".join(sorted(names["a"]))} x")\nprint(f"final val_bpb:{b if c else "none"}")\n'
    lines = [line for line, _ in literals.printed_lines(literals.parsed(text))]
    assert {"\0 x", "final val_bpb:\0"} <= {*lines}
    with pytest.raises(SyntaxError):
        literals.parsed("def f(:")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("x = os.environ.get('A') in ()", "A"),
        ("x = os.environ.get('A') == []", "A"),
        ("x = float(os.environ.get('A', 1e11 ** 64.0))", "A"),
        ("x = float(os.environ.get('A_LR', 1e308))", "A_LR"),
        ("x = os.getenv(key='A', default='2')", "A"),
        ("x = os.environ.get('A.B', '1')", "A.B"),
        ("x = int(os.environ.get('C D', 3))", "C D"),
        (r"x = os.environ.get('\ud800', '1')", "\ud800"),
    ],
)
def test_odd_reads_still_draft_a_study(tmp_path: Path, line: str, name: str):
    script = tmp_path / "s.py"
    script.write_text(f"import os\n{line}\ny = os.environ.get('LAST', '1')\n")
    write(script, tmp_path / "s.toml")
    assert names_read(script) == {"LAST", name}
    told = "no name that a study can set" in (tmp_path / "s.toml").read_text()
    assert told == (not name.isidentifier())


def test_what_nests_too_deeply_is_one_error(tmp_path: Path):
    script = tmp_path / "s.py"
    for text in ("+".join("1" * 1500), "a" + ".b" * 900, "-" * 1500 + "1", "+".join("1" * 10_000)):
        script.write_text(f"import os\nx = os.environ.get({text}, {text})\n")
        with pytest.raises(ValueError, match=r"A scan reads Python, but .*s\.py (nests|cannot)"):
            scan(script)
        assert names_read(script) == set()


def test_a_draft_that_cannot_be_loaded_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "s.py"
    script.write_text("import os\nx = os.environ.get('A', '1')\n")
    monkeypatch.setattr("search.trainers.foreign.draft.draft", lambda found, out: "no = toml = at all")
    with pytest.raises(ValueError, match=r"s\.toml"):
        write(script, tmp_path / "s.toml")
    assert not (tmp_path / "s.toml").exists()


ARGUMENTS = """
import argparse, click
LR = 3e-4
p = argparse.ArgumentParser()
p.add_argument("data_dir")
p.add_argument("-l", "--matrix-lr", type=float, default=LR)
p.add_argument("--depth", dest="num_layers", type=int, default=12)
p.add_argument("--use-ema", action="store_true")
p.add_argument("--no-compile", action="store_false")
p.add_argument("--rotary", action=argparse.BooleanOptionalAction, default=True)
p.add_argument("--codec", choices=["zlib", "zstd"], default="zlib")
p.add_argument("--fancy", type=bool, default=False)
p.add_argument("--loud", type=lambda x: x == "true", default=True)
p.add_argument("--betas", nargs=2, type=float, default=[0.9, 0.95])
p.add_argument("--max-steps", type=int, default=1000)
p.add_argument(f"--{name}", default=1)
p.add_argument("--seed", type=int, default=7)
p.add_argument("--dropout", type=float, default=parts[0])
@click.option("--warm/--no-warm", default=False)
@click.option("--clip-norm", type=float, default=1.0)
def main(): ...
print(f"step {i}: train loss {a:.3f}, val loss {b:.3f}, elapsed {t:.1f}s")
print(f"best val loss {c}")
"""


def test_arguments_of_argparse_and_click(tmp_path: Path):
    found = scanned(tmp_path, ARGUMENTS)
    foreign, tables = drafted(tmp_path, found)
    where = {name: binding.where for name, binding in foreign.bindings.items()}
    assert where["matrix_lr"] == "--matrix-lr={value}" and where["num_layers"] == "--depth={value}"
    assert foreign.bindings["rotary"].off == "--no-rotary" and foreign.bindings["warm"].off == "--no-warm"
    space = foreign.variables
    assert space["matrix_lr"].domain == Float(7.5e-05, 0.0012, True) and space["num_layers"].domain == Int(
        10, 14
    )
    assert space["codec"].domain == Choice(("zlib", "zstd")) and space["clip_norm"].domain == Float(
        0.5, 2.0, True
    )
    assert space["use_ema"].gate and where["use_ema"] == "--use-ema"
    assert (space["fancy"].text(True), space["fancy"].text(False)) == ("1", "")  # bool("0") is true
    assert (space["loud"].text(True), space["loud"].text(False)) == ("true", "false")
    assert not {"no_compile", "betas", "dropout", "max_steps", "seed"} & {*space}
    assert foreign.steps == "max_steps" and foreign.seed == "seed" and foreign.in_nats
    told = "\n".join(found.odd)
    assert "'data_dir' is given by its place" in told and "--betas takes several values" in told
    assert (
        "an argument built at run time" in told
        and "computed default" in (tmp_path / "theirs.toml").read_text()
    )
    reader = LogReader(
        Rules(score_pattern=foreign.score_pattern, progress_pattern=foreign.progress_pattern, steps=4)
    )
    for step in (2, 4):
        reader.feed(f"step {step}: train loss 3.200, val loss {3 - step / 10:.3f}, elapsed {step:.1f}s", 1.0)
    reader.feed("best val loss 1.0", 1.0)
    assert reader.value()[1] == 2.6 and reader.steps == 4 and reader.train_seconds(9.0) == (4.0, "train_time")
    assert tables["trainer"]["files"] == ["train_gpt.py"]


CONFIGURED = """
import sys
learning_rate = 6e-4 # max
n_layer = 12
bias = False
device = 'cuda'
_hidden = 3
exec(open('configurator.py').read())
later = 7
"""


def test_a_configurator(tmp_path: Path):
    found = scanned(tmp_path, CONFIGURED)
    foreign, _ = drafted(tmp_path, found)
    assert not found.odd and {*found.reads} == {"learning_rate", "n_layer", "bias", "device"}
    assert foreign.bindings["bias"].words(foreign.variables["bias"].setting(False)) == ["--bias=False"]
    assert foreign.variables["n_layer"].domain == Int(10, 14)
    own = CONFIGURED.replace(
        "exec(open('configurator.py').read())", "for a in sys.argv[1:]:\n    globals()[a] = 1"
    )
    assert {*scanned(tmp_path, own).reads} == {*found.reads}


STEP_LINES = """
import os
lr = float(os.environ.get("LR", 0.1))
steps, heads = int(os.environ.get("STEPS", 90)), int(os.environ.get("HEADS", 8))
log(f"step:{step}/{n} train_loss:{loss:.4f} train_time:{ms:.0f}ms")
log(f"{step}/{n} val_loss: {loss:.4f} val_bpb: {bpb:.4f}")
"""


def test_a_script_whose_bpb_stands_on_lines_with_a_step_is_scored_by_the_last_of_them(tmp_path: Path):
    found = scanned(tmp_path, STEP_LINES)
    foreign, _ = drafted(tmp_path, found)
    assert not found.odd and {*foreign.variables} == {"LR"} and len(foreign.score_pattern) == 1
    log = "0/9 val_loss: 3.0 val_bpb: 1.9\nstep:1/9 train_loss:2.0 train_time:5ms\n"
    log += "9/9 val_loss: 2.0 val_bpb: 1.2"
    reader = LogReader(Rules(score_pattern=foreign.score_pattern, progress_pattern=foreign.progress_pattern))
    for at, line in enumerate(log.splitlines()):
        reader.feed(line, float(at))
    assert reader.value() == ("val_bpb", 1.2, 2.0) and reader.steps == 9 and reader.train_s == 0.005
    (tmp_path / "out.toml").unlink(missing_ok=True)
    assert "bits per byte, by the script's own lines" in write(found.path, tmp_path / "out.toml")
    more = 'log(f"ttt_chunk [{k}/{n}] bpb={bpb:.4f}")\nlog(f"ttt BPB: {bpb:.6f}")\n'
    assert "ttt_chunk" not in str(scanned(tmp_path, STEP_LINES + more).patterns.score)
    named = scanned(tmp_path, STEP_LINES + 'log(f"{label} val_loss:{a} val_bpb:{b}")\n')
    assert not named.patterns.score and "a score label built at run time" in str(named.odd)


PLAIN = """
import os
from dataclasses import dataclass, field
MATRIX_LR = 0.02
steps_done = 0
NUM_LAYERS, WIDTH = 8, 512
@dataclass
class Hyperparameters:
    cooldown_frac: float = 0.4
    num_iterations: int = 1000
    use_fp8: bool = field(default=True)
class Block:
    expansion = 4
for step in range(10):
    steps_done += 1
print(f"step:{step}/{n} val_loss:{loss:.4f} train_time:{ms:.0f}ms")
"""


def test_constants_where_nothing_else_sets_them(tmp_path: Path):
    found = scanned(tmp_path, PLAIN)
    foreign, _ = drafted(tmp_path, found)
    assert {n: b.where for n, b in foreign.bindings.items() if b.table == "constants"} == {
        "MATRIX_LR": "MATRIX_LR",
        "cooldown_frac": "Hyperparameters.cooldown_frac",
        "use_fp8": "Hyperparameters.use_fp8",
    }
    assert "train_ms" in foreign.score_pattern[0] and not foreign.steps  # the log has the total
    assert "take it in here and bind it in [constants], num_iterations = " in draft(
        found, tmp_path / "x.toml"
    )
    many = PLAIN + "".join(f"x{i} = os.environ.get('X{i}_LR', 0.1)\n" for i in range(6))
    assert {*scanned(tmp_path, many).reads} == {f"X{i}_LR" for i in range(6)}


@pytest.mark.parametrize(
    ("head", "word"),
    [
        ("import tyro", "--matrix-lr={value}"),
        ("from transformers import HfArgumentParser", "--matrix_lr={value}"),
    ],
)
def test_dataclasses_that_a_parser_is_given(tmp_path: Path, head: str, word: str):
    text = f"{head}\nclass Other:\n    lr = 1.0\nclass Args:\n    matrix_lr: float = 0.02\n"
    text += "    fast: bool = True\n"
    text += "args = tyro.cli(Args)\n" if "tyro" in head else "args, = HfArgumentParser(Args).parse()\n"
    foreign, _ = drafted(tmp_path, scanned(tmp_path, text))
    assert foreign.bindings["matrix_lr"].where == word and "lr" not in foreign.variables
    assert foreign.variables["fast"].text(False) == "False"


CHECKED = """
import os
class H:
    width = int(os.environ.get("WIDTH", 48))
    groups = int(os.environ.get("GROUPS", 4))
    a_on = bool(int(os.environ.get("A_ENABLED", "1")))
    b_on = bool(int(os.environ.get("B_ENABLED", "0")))
    b_lr = float(os.environ.get("B_LR", "0.1"))
    chunk_len = int(os.environ.get("CHUNK_LEN", 6))
    sharp = float(os.environ.get("SHARP", 2.0))
    odd = int(os.environ.get("ODD", 5))
class Block:
    def __init__(self, size, gate_a=False, gate_b=False):
        if int(gate_a) + int(gate_b) > 1:
            raise ValueError("only one")
        assert size % 3 == 0 or gate_unknown(size), "thirds"
def build(h):
    if h.chunk_len % 2:
        raise ValueError
    if h.a_on:
        assert h.sharp <= 3.0
    if h.odd == 5:
        raise SystemExit  # misunderstood: the default itself would end here
    if h.groups > 100 and h.mystery:
        raise ValueError
    return Block(h.width, gate_a=h.a_on, gate_b=bool(h.b_on))
"""


def test_values_that_the_scripts_own_checks_forbid(tmp_path: Path):
    found = scanned(tmp_path, CHECKED)
    foreign, _ = drafted(tmp_path, found)
    space = foreign.variables
    assert space["CHUNK_LEN"].domain == Int(4, 12, False, 2) and space["SHARP"].domain == Float(
        1.0, 3.0, True
    )
    assert "B_ENABLED" not in space and foreign.fixed["B_ENABLED"] == "0" and space["A_ENABLED"].gate
    assert space["ODD"].domain == Int(2, 10) and "GROUPS" in space
    text = (tmp_path / "theirs.toml").read_text()
    assert "line 14 forbids some values" in text and text.count("forbids some values") == 3
    for values in draws(foreign, 100):
        assert not any(
            c.forbids({n: r.default for n, r in found.reads.items()} | values) for c in found.checks
        )


def test_hidden_files_that_a_script_reads_are_told(tmp_path: Path):
    (tmp_path / ".keys").write_text("")
    text = "load_dotenv()\nopen('.secrets.json')\nx = '.keys'\ny = '.bin'\nz = Path('~/.config')\n"
    told = [odd.partition(",")[0] for odd in scanned(tmp_path, text).odd]
    named = (".env", ".secrets.json", ".keys")
    assert told == [f"line {line}: reads {name}" for line, name in enumerate(named, 1)] + [
        "line 5: reads ~/.config"
    ]


def test_a_script_of_a_package_is_run_as_a_module(tmp_path: Path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "__init__.py").write_text("")
    script = tmp_path / "scripts" / "train.py"
    script.write_text("import os\nfrom lib import model\nx = float(os.environ.get('MATRIX_LR', 0.1))\n")
    write(script, tmp_path / "s.toml")
    foreign = load_study(tmp_path / "s.toml", {}).foreign
    assert foreign is not None and foreign.command == ("{python}", "-m", "{module}")
    trainer = trainer_of(load_study(tmp_path / "s.toml", {}))
    assert isinstance(trainer, ForeignTrainer) and trainer.words()[1:] == ("-m", "scripts.train")
