"""The bundle: one file that runs alone and gives the unbundled run's losses, artifact and BPB bit for bit."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.inline import inline, names_bound, names_used
from bundle.one_file import bundle, export, literal_of, resolve_layer
from techniques import catalog
from techniques.base import Verdict
from techniques.config import Resolved, resolve
from tests.conftest import ROOT, arguments, run_trainer
from tests.search.fake_studies import caddie

KNOWN = catalog.metadata()


def crowd(base: dict[str, str], *, legal: bool = True) -> dict[str, str]:
    """As many techniques at once as agree with each other, each under its smoke settings."""
    settings = {k: v for k, v in base.items() if k != "warmdown_iters"}
    for name, cls in KNOWN.items():
        if legal and cls.legality.verdict in (Verdict.CONTESTED, Verdict.ILLEGAL):
            continue
        more = {name: "1", **{f"{name}.{k}": str(v) for k, v in cls.smoke.items()}}
        try:
            resolve({"file": {**settings, **more}}, KNOWN)
        except ValueError:
            continue
        settings |= more
    return settings


def alone(script: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The script in its own folder, by an interpreter that sees neither this project nor the environment."""
    clean = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HOME": str(script.parent), **environ}
    command = [sys.executable, "-I", script.name, *words]
    return subprocess.run(
        command, cwd=script.parent, env=clean, capture_output=True, text=True, check=False, timeout=600
    )


def facts(out_dir: Path) -> dict:
    """What must be equal to the last bit."""
    result = json.loads((out_dir / "result.json").read_text())
    lines = [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [(m["step"], m["train_loss"]) for m in lines if m["kind"] == "train"]
    kept = ("sha256", "model_bytes", "val_bpb", "val_loss", "train_loss", "steps", "hash", "params")
    return {k: result[k] for k in kept} | {"losses": losses}


def resolved_of(settings: dict[str, str]) -> Resolved:
    return resolve({"file": settings}, KNOWN)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.long)], ids=["naive", "many"])
def test_a_bundle_alone_gives_the_same_bits(tiny: dict[str, str], tmp_path: Path, many: bool) -> None:
    settings = crowd(tiny) if many else tiny
    assert not many or len(resolved_of(settings).techniques) > 12
    whole = run_trainer({**settings, "out_dir": str(tmp_path / "whole")})
    assert whole.returncode == 0, whole.stdout + whole.stderr
    plain = export(resolved_of(settings), tmp_path / "plain")
    ran = alone(plain, "--out_dir=out")
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    assert facts(plain.parent / "out") == facts(tmp_path / "whole")
    told = json.loads((plain.parent / "out" / "result.json").read_text())
    assert told["code_bytes"] == plain.stat().st_size


@pytest.mark.long
def test_a_bundle_takes_overrides_and_refuses_what_it_lacks(tiny: dict[str, str], tmp_path: Path) -> None:
    script = export(resolved_of({**tiny, "xsa": "1", "xsa.last_n": "2"}), tmp_path)
    told = alone(script, "--out_dir=out", "--iterations=1", SEED="7", XSA_LAST_N="1")
    assert told.returncode == 0, told.stderr
    values = json.loads((tmp_path / "out" / "resolved.json").read_text())["values"]
    assert (values["iterations"], values["seed"], values["xsa.last_n"]) == (1, 7, 1)
    assert values["num_layers"] == 3 and "ema" not in values
    for words, environ, says in (
        (["--ema"], {}, "ema"),
        (["--preset=naive"], {}, "no presets"),
        ([], {"EMA_DECAY": "0.9"}, "EMA_DECAY"),
        (["--num_heads=3"], {}, "num_heads"),
    ):
        refused = alone(script, *words, **environ)
        assert refused.returncode == 2 and says in refused.stderr, refused.stderr


def test_a_bundle_holds_the_techniques_that_are_on_and_nothing_of_the_house(tiny: dict[str, str]) -> None:
    text = bundle(resolved_of({**tiny, "xsa": "1", "xsa.last_n": "1"}))
    tree = ast.parse(text)
    names = names_bound(text)
    assert "Xsa" in names and "Ema" not in names and "write_shard" not in names and "train_bpe" not in names
    imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    ours = {"trainer", "techniques", "corpus", "search", "bundle", "claims", "readers", "train_gpt"}
    assert not {m.split(".")[0] for m in imported if m} & ours, imported
    owners = [name for node in tree.body for name in names_bound(ast.unparse(node))]
    assert len(owners) == len(set(owners)), "a top-level name has two owners"


def with_needs(name: str, base: dict[str, str]) -> dict[str, str]:
    """`base` and the technique, with what it requires."""
    needs = [name, *KNOWN[name].requires]
    settings = {f"{n}.{k}": str(v) for n in needs for k, v in KNOWN[n].smoke.items()}
    unread = {field for n in needs for field in KNOWN[n].overrides}
    base = {k: v for k, v in base.items() if k not in unread}
    return {**base, **dict.fromkeys(needs, "1"), **settings}


def crowds_of(tiny: dict[str, str]) -> list[dict[str, str]]:
    """Every technique, in the fewest crowds that agree."""
    left, crowds = list(KNOWN), list[dict[str, str]]()
    while left:
        settings = with_needs(left[0], tiny)
        for name in left[1:]:
            try:
                resolve({"file": with_needs(name, settings)}, KNOWN)
            except ValueError:
                continue
            settings = with_needs(name, settings)
        crowds.append(settings)
        left = [name for name in left if name not in settings]
    return crowds


def test_every_technique_can_be_bundled(tiny: dict[str, str], tmp_path: Path) -> None:
    """Each one alone is the long test below."""
    check_names({str(k): settings for k, settings in enumerate(crowds_of(tiny))}, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", KNOWN)
def test_every_technique_can_be_bundled_alone(name: str, tiny: dict[str, str], tmp_path: Path) -> None:
    check_names({name: with_needs(name, tiny)}, tmp_path)


def check_names(configurations: dict[str, dict[str, str]], folder: Path) -> None:
    """No name without an owner in any of the bundles."""
    for name, settings in configurations.items():
        (folder / f"{name}.py").write_text(bundle(resolved_of(settings)))
    check = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821,F822,F823,F811"]
    ran = subprocess.run([*check, str(folder)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


def test_the_literal_says_the_whole_configuration(tiny: dict[str, str]) -> None:
    resolved = resolved_of(crowd(tiny))
    again = resolve({"preset": literal_of(resolved)}, KNOWN)
    assert again.values == resolved.values and again.hash() == resolved.hash()


HOUSE = {
    "house/__init__.py": '"""A house."""\n',
    "house/a.py": '"""a."""\nfrom fractions import Fraction\nSIZE = 2\nfirst = Fraction(1, 2)\n'
    "def half(SIZE=3):\n    return [SIZE for SIZE in range(SIZE)]\ndef unused():\n    return SIZE\n",
    "house/b.py": '"""b."""\nfrom decimal import Decimal as number\nfrom house import a\nfive = 5\n'
    "def most(n):\n    class Box:\n        SIZE = 7\n        double = SIZE * 2\n"
    "        def get(self):\n            return a.SIZE, five\n"
    "    return (lambda: a.half(n))(), [a.SIZE for five in 'ab'], str(number('0.5')), "
    "Box.double, Box().get()\n"
    "def call(a):\n    return a.least\n",
    "top.py": '"""top."""\nfrom house.b import call, most\ndef main():\n    from house.a import SIZE\n'
    "    return most(4), SIZE, max(1, 2), call(range).start if not call else 0\n"
    'if __name__ == "__main__":\n    print(main())\n',
}


def built(folder: Path, **instead: tuple[str, str]) -> str:
    """HOUSE as one file, with pieces of its text replaced: file's stem = (old, new)."""
    for name, text in HOUSE.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        old, new = instead.get(path.stem, ("", ""))
        assert old in text
        path.write_text(text.replace(old, new) if old else text)
    return inline(folder, "top", replaced={})


def test_what_is_inlined_runs_alike(tmp_path: Path) -> None:
    text = built(tmp_path)
    (tmp_path / "alone.py").write_text(text)
    run = [subprocess.run([sys.executable, n], cwd=tmp_path, capture_output=True, text=True, check=True)
           for n in ("top.py", "alone.py")]  # fmt: skip
    assert run[0].stdout == run[1].stdout and "[2, 2], '0.5', 14, (2, 5)" in run[0].stdout
    assert "unused" not in text and "house" not in text.replace("House", "") and "first" not in text


@pytest.mark.parametrize(
    ("says", "instead"),
    [
        ("'five' is house.b here and house.a elsewhere", {"a": ("SIZE = 2", "SIZE = five = 2")}),
        ("'number' is", {"a": ("Fraction\n", "Fraction as number\nFraction = number\n")}),
        ("'max' is house.a here and a built-in", {"a": ("def unused", "def max")}),
        ("hides SIZE", {"b": ("for five", "for SIZE")}),  # a comprehension's own
        ("hides half", {"b": ("lambda:", "lambda half=4:")}),
        ("hides half", {"b": ("(lambda: a.half(n))()", "[half := 3] + a.half(n)")}),
        ("hides SIZE", {"b": ("SIZE * 2", "a.SIZE * 2")}),  # a class body's own
        ("hides a", {"b": ("lambda: a.half(n)", "lambda a=n: a")}),
        ("as two", {"top": ("import SIZE", "import SIZE as two")}),
        ("no top-level name 'least'", {"b": ("return a.SIZE", "return a.least")}),
    ],
)
def test_what_would_change_its_meaning_is_refused(
    tmp_path: Path, says: str, instead: dict[str, tuple[str, str]]
) -> None:
    with pytest.raises(ValueError, match=says):
        built(tmp_path, **instead)


def test_names_follow_pythons_rule() -> None:
    text = (
        "def f(a, *b, c=one, **d):\n    e = [g + two for g in a]\n    global h\n    h = 1\n"
        "    try: pass\n    except ValueError as i: pass\n    import j.k\n    if (m := 1): m.three\n"
        "    def n(): return a, e\n    return lambda p: p + four\n"
    )
    assert names_bound(text) == {"f"}
    assert names_used(text) == {"one", "two", "h", "ValueError", "four"}


def test_a_module_used_as_a_value_is_refused(tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text('"""part."""\nX = 1\n')
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "part.py").write_text('"""part."""\nX = 1\n')
    (tmp_path / "top.py").write_text("from pack import part\nprint(vars(part))\n")
    with pytest.raises(ValueError, match="used as a value"):
        inline(tmp_path, "top", replaced={})


def test_the_command_exports(tmp_path: Path) -> None:
    ran = caddie("export", "--preset", "naive", "--to", str(tmp_path / "x"), "--format", "script")
    assert ran.returncode == 0, ran.stderr
    size = (tmp_path / "x" / "train_gpt.py").stat().st_size
    assert f"{size:,} code bytes, no technique" in ran.stdout
    assert size == len(bundle(resolve_layer({"preset": "naive"})).encode())
    for words, says in (
        (["--preset", "naive", "--to", str(tmp_path / "x")], "exists"),
        (["--to", str(tmp_path / "y")], "names one of"),
        (["--preset", "naiv", "--to", str(tmp_path / "y")], "'naive'"),
        (["--preset", "naive", "--to", str(tmp_path / "y"), "--format", "folder"], "--format script"),
    ):
        refused = caddie("export", *words)
        assert refused.returncode == 2 and says in refused.stderr, refused.stderr


def test_a_bundle_names_no_place_and_every_setting(tiny: dict[str, str]) -> None:
    text = bundle(resolved_of(tiny))
    assert str(ROOT) not in text
    assert arguments(tiny)  # the settings themselves are in the text, by name
    assert "'num_layers': 3" in text
