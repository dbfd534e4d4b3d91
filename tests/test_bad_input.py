"""Bad input to the four commands: exit status 2, one clear error, no traceback, and nothing begun or lost."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import train_gpt
import validate
from corpus.__main__ import main as corpus_main
from search.cli import app

STUDY = """
[study]
name = "bad"
preset = "laptop"
track = "open"
[limits]
artifact_bytes = 2_000_000
train_seconds = 100.0
eval_seconds = 100.0
[techniques]
others = "off"
[space]
matrix_lr = { low = 0.01, high = 0.1, log = true }
"""
FILES = {
    "list.json": b"[1,2]",
    "text.json": b'"x"',
    "empty.json": b"",
    "odd.json": b"\xff\xfe\x00",
    "deep.json": b"[" * 5000,
    "deep.toml": b"a = " + b"[" * 5000,
    "twice.toml": b"a = 1\na = 2",
    "null.json": b'{"iterations": null}',
    "nan.json": b'{"matrix_lr": NaN}',
    "endless.json": b'{"iterations": Infinity}',
    "marked.json": b'\xef\xbb\xbf{"iterations": 0}',
    "marked.toml": b"\xef\xbb\xbfiterations = 0",
    "odd.toml": b"\xff\xfe",
    "three.toml": b"study = 3",
    "marked_study.toml": b"\xef\xbb\xbf[spice]",
    "text.txt": b"hello world. " * 50,
    "empty.txt": b"",
    "odd.txt": b"\xff\xfe\x00\x80" * 99,
    "odd.jsonl.gz": b"nope",
    "odd.jsonl.xz": b"nope",
    "half.jsonl": b"{",
    "deep.jsonl": b"[" * 5000 + b"\n",
    "three.jsonl": b'{"text": 3}\n',
    "plain.py": b"print(1)",
    "half.py": b"def (",
    "odd.py": b"\xff\xfe\x00",
}

# words of a command line (a leading @ is a path under the test's folder) -> what the error says
TRAIN = {
    "--nosuch 1": "Unknown setting",
    "--iterations": "takes a value",
    "--iterations x": "takes a int",
    "--iterations -1": "must lie in 1",
    "--iterations 1e999": "takes a int",
    "--matrix_lr nan": "must be a finite number, but got nan",
    "--matrix_lr -inf": "must be a finite number, but got -inf",
    "--seed 1000000000000000000000000": "must lie in 0",
    "--num_heads 7": "even multiple",
    "--device tpu": "must be one of",
    "--preset nope": "Unknown preset",
    "--preset ../studies/laptop": "Unknown preset",
    "--data_path /nowhere": "/nowhere is no folder",
    "--out_dir /proc/x": "/proc/x",
    "@none.json": "No configuration file",
    "@folder": "directory",
    "@list.json": "must hold settings by name, but is a list",
    "@text.json": "must hold settings by name, but is a str",
    "@empty.json": "not valid JSON",
    "@odd.json": "not valid JSON",
    "@deep.json": "nests too deeply",
    "@deep.toml": "nests too deeply",
    "@twice.toml": "not valid TOML",
    "@null.json": "takes a int",
    "@nan.json": "must be a finite number",
    "@endless.json": "takes a int",
    "@marked.json": "must lie in 1",  # its byte order mark is none of its content
    "@marked.toml": "must lie in 1",
}
VALIDATE = {
    "nosuch": "Unknown technique",
    "xsa --json /nowhere/x.json": "--json names a file",
    "xsa --json @folder": "--json names a file",
    "--device tpu": "invalid choice",
    "--workers x": "invalid int",
    "--pair": "unrecognized",
}
CORPUS = {
    "check /nowhere": "/nowhere is no folder",
    "check @folder --seq-len 0": "",
    "info @list.json": "",
    "build --text /nowhere": "/nowhere",
    "build --text @folder": "",
    "build --text @text.txt --to @d --vocab-size -1": "",
    "build --text @text.txt --to @d --val-frac nan": "",
    "build --text @text.txt --to @d --val-docs -1": "",
    "build --text @text.txt --to @d --max-doc-bytes 0": "",
    "build --text @text.txt --to @d --name ..": "a folder's name",
    "build --text @empty.txt --to @d": "",
    "build --text @odd.txt --to @d": "",
    "build --text @odd.jsonl.gz --to @d": "",
    "build --text @odd.jsonl.xz --to @d": "",
    "build --text @half.jsonl --to @d": "one JSON object a line",
    "build --text @deep.jsonl --to @d": "one JSON object a line",
    "build --text @three.jsonl --to @d": "Rename the field",
    "build --text @plain.py --to @d": "",
    "embedded --variant gpt2": "A variant is",
    "embedded --to ''": "is empty",
    "download --train-shards -1": "at least 1",
    "download --variant sp1024 --to ' '": "is empty",
    "nosuch": "No such command",
}
RUN = {  # the default command of search.py, on a good study
    "--trials -1": "--trials",
    "--workers 0": "--workers",
    "--niceness 99": "--niceness",
    "--home ''": "is empty",
    "--home ' '": "is empty",
    "--home @text.txt": "Nothing stored is lost",
    "--storage ''": "got no URL",
    "--storage ' '": "got no URL",
    "--storage me:hush@host/db": "got a name without ://",
    "--storage sqlite:///x": "got sqlite://",
    "--storage hush://x": "got something else://",
    "--storage postgresql://me:hush@127.0.0.1:-1/db": "cannot be read",
    "--storage postgresql://me:hush@127.0.0.1:70000/db": "cannot be read",
    "--storage postgresql://me:hush@a@b/db": "cannot be read",
    "--engine nope": "An engine is one of",
    "--engine ray --storage postgresql://me:hush@b:x/db": "cannot be read",
    "--engine ray": "other machines",
    "--engine-option a=b": "the engine is local",
    "--cache-size nan": "positive number",
    "--cache-shared gs://me:hush@x": "a folder or s3://",
    "--cache-shared s3://me:hush@bucket/x": "user-info",
    "--cache off --cache-shared @d": "--cache is off",
    "--sampler nope": "nope",
    "--trainer /nowhere.py": "/nowhere.py",
    "--trainer @plain.py": "never mentions it",
    "--study @none.toml": "No such study file",
    "--study @folder": "is a folder",
    "--study @odd.toml": "Not valid TOML",
    "--study @deep.toml": "nest too deeply",
    "--study @three.toml": "must be a table",
    "--study @marked_study.toml": "Unknown table",
}
READ = {
    "status": "no 'bad' in this database",
    "best --top 0": "--top",
    "show x": "N",
    "show 99999999999999999999": "no 'bad' in this database",
    "costs --nope": "--nope",
    "dashboard --port -1": "--port",
    "dashboard --port 70000": "--port",
    "status --home ''": "is empty",
    "status --storage ''": "got no URL",
    "scan /nowhere.py": "/nowhere.py",
    "scan @half.py": "half.py",
    "scan @odd.py": "odd.py",
    "scan @plain.py --out /nowhere/x.toml": "/nowhere",
    "export --to @o": "--trial N, --preset NAME and --config FILE",
    "export --to @o --preset nope": "Unknown preset",
    "export --to @o --config @list.json": "must hold settings by name",
    "export --to @o --preset naive --format x": "--format",
    "export --to @text.txt --preset naive": "text.txt",
}
EDITS = [  # what is changed in the good study, into what -> what the error says
    ("[study]", "[study", "Not valid TOML"),
    ("high = 0.1", "high = inf", "must be a finite number, but got inf"),
    ("high = 0.1", "high = nan", "must be a finite number, but got nan"),
    ("high = 0.1", "high = 1e400", "must be a finite number, but got inf"),
    ("high = 0.1", f"high = {'9' * 400}", "takes a float"),
    ("low = 0.01", "low = -inf", "must be a finite number"),
    ("high = 0.1", "high = 0.001", "must have low < high"),
    ("high = 0.1", "high = 0.01", "must have low < high"),
    ("low = 0.01, ", "", "low and high"),
    ("log = true", "log = 3", "log is a boolean"),
    ("{ low = 0.01, high = 0.1, log = true }", "{ choices = [] }", "choices"),
    ("{ low = 0.01, high = 0.1, log = true }", "{ choices = [0.1, nan] }", "must be a finite number"),
    ("{ low = 0.01, high = 0.1, log = true }", "inf", "must be a finite number"),
    ("train_seconds = 100.0", "train_seconds = nan", "must be a finite number"),
    ("train_seconds = 100.0", "train_seconds = inf", "must be a finite number"),
    ("artifact_bytes = 2_000_000", "artifact_bytes = -1", "must lie in 1"),
    ('name = "bad"', 'name = "../x"', "a folder's"),
    ('name = "bad"', "name = 3", "takes a str"),
    ('preset = "laptop"', 'preset = "nope"', "Unknown preset"),
    ('track = "open"', "timeout_seconds = nan", "must be a finite number"),
    ('track = "open"', "gpus_per_trial = -1", "must lie in"),
    ('others = "off"', 'others = "maybe"', "must be one of"),
    ("[space]", "[pruning]\nquantile = 7\n[space]", "must lie in"),
    ("[space]", "[fixed]\nmatrix_lr = nan\n[space]", "must be a finite number"),
    ("[space]", '[trainer]\nscript = "x.py"\n[space]', ""),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "good.toml").write_text(STUDY, encoding="utf-8")
    return tmp_path


def words_of(line: str, folder: Path) -> list[str]:
    """A command line's words; '' is an empty one."""
    parts = line.replace("' '", "\x01").replace("''", "\x00").split(" ")
    plain = [part.replace("\x01", " ").replace("\x00", "") for part in parts]
    return [str(folder / word[1:]) if word.startswith("@") else word for word in plain]


def check(code: object, said: tuple[str, str], says: str, folder: Path) -> None:
    """Status 2, one error with these words; no secret, no traceback, nothing made and nothing changed."""
    out, err = said
    assert code == 2, (code, out, err)
    assert err.lower().count("error: ") + err.count("─ Error ─") == 1 and "Traceback" not in err, err
    assert says.lower() in " ".join(err.lower().replace("│", " ").split()), err
    assert "hush" not in out + err
    made = {path.name for path in folder.iterdir()} - {"folder", "good.toml", "edited.toml", *FILES}
    assert made <= {"home", "d"} and not list(folder.rglob("manifest.json"))
    assert not (folder / "home" / ".caddie").exists()
    assert all((folder / name).read_bytes() == data for name, data in FILES.items())


@pytest.mark.parametrize("line", TRAIN)
def test_train_gpt(folder: Path, capsys: pytest.CaptureFixture[str], line: str):
    elsewhere = [] if "data_path" in line else ["--data_path=/x"]  # what was taken by mistake does not train
    code = train_gpt.main([*elsewhere, *words_of(line, folder)])
    check(code, capsys.readouterr(), TRAIN[line], folder)


@pytest.mark.parametrize("line", VALIDATE)
def test_validate(folder: Path, capsys: pytest.CaptureFixture[str], line: str):
    try:
        code: object = validate.main(words_of(line, folder))
    except SystemExit as end:  # argparse
        code = end.code
    check(code, capsys.readouterr(), VALIDATE[line], folder)


@pytest.mark.parametrize("line", CORPUS)
def test_corpus(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str):
    monkeypatch.chdir(folder)  # what is made in the current folder by mistake is seen
    monkeypatch.setattr(sys, "argv", ["corpus", *words_of(line, folder)])
    with pytest.raises(SystemExit) as end:
        corpus_main()
    check(end.value.code, capsys.readouterr(), CORPUS[line], folder)


def search(folder: Path, words: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CADDIE_STORAGE", raising=False)
    monkeypatch.chdir(folder)
    ran = CliRunner().invoke(app, words)
    gc.enable()  # a command that reads turns it off
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    check(ran.exit_code, (ran.stdout, ran.stderr), says, folder)


@pytest.mark.parametrize("line", RUN)
def test_search(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str):
    usual = {"--trials": "1", "--home": str(folder / "home"), "--study": str(folder / "good.toml")}
    given = [word for name, value in usual.items() if name not in line for word in (name, value)]
    search(folder, [*given, *words_of(line, folder)], RUN[line], monkeypatch)


@pytest.mark.parametrize("line", READ)
def test_search_reads(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str):
    before = [f"--study={folder / 'good.toml'}", *([] if "--home" in line else [f"--home={folder / 'home'}"])]
    search(folder, [*before, *words_of(line, folder)], READ[line], monkeypatch)


@pytest.mark.parametrize(("old", "new", "says"), EDITS)
def test_a_study(folder: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, says: str):
    assert old in STUDY
    (folder / "edited.toml").write_text(STUDY.replace(old, new, 1), encoding="utf-8")
    words = ["--trials=1", f"--study={folder / 'edited.toml'}", f"--home={folder / 'home'}"]
    search(folder, words, says, monkeypatch)
