"""The commands: exit 0 with facts, or exit 2 with one paragraph; and no torch behind them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from corpus.__main__ import main
from corpus.export import Target
from tests.corpus.conftest import sentences
from tests.corpus.test_build import CHINESE, prose


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["corpus", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        main()
    return exit_info.value.code


def test_build_check_info(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in ("one.txt", "two.md"):
        (tmp_path / name).write_text("\n\n".join(sentences(len(name), 300)))
    options = (
        "--to",
        tmp_path / "data",
        "--vocab-size",
        "400",
        "--val-frac",
        "0.1",
        "--max-doc-bytes",
        "500",
    )
    assert run(monkeypatch, "build", "--text", tmp_path / "one.txt", tmp_path / "two.md", *options) == 0
    folder = tmp_path / "data/datasets/one_sp400"
    built = capsys.readouterr().out
    assert "bytes/token" in built
    assert run(monkeypatch, "info", folder) == 0
    assert capsys.readouterr().out in built
    assert run(monkeypatch, "check", folder, "--seq-len", "64") == 0
    assert "sound: " in capsys.readouterr().out


def test_bytes_for_characters_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "zh.txt").write_text(prose(CHINESE, 2, lines=300), encoding="utf-8")
    to = ("--to", tmp_path / "data", "--max-doc-bytes", "600")
    assert run(monkeypatch, "build", "--text", tmp_path / "zh.txt", "--vocab-size", "400", *to) == 0
    told = capsys.readouterr().out
    assert "of the tokens are single bytes" in told and "--vocab-size 1600" in told
    assert run(monkeypatch, "build", "--text", tmp_path / "zh.txt", "--vocab-size", "1100", *to) == 0
    assert "single bytes" not in capsys.readouterr().out


def test_bad_input_is_one_paragraph_and_status_2(
    tmp_path: Path,
    dataset_target: Target,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    shard = dataset_target.folder / "fineweb_train_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    for arguments in (
        ("check", dataset_target.folder),
        ("check", tmp_path / "absent"),
        ("info", tmp_path),
        ("build", "--text", tmp_path / "absent.txt"),
        ("build", "--text", tmp_path, "--name", "a/b"),
        ("embedded", "--variant", "gpt2"),
        ("download", "--train-shards", "0"),
    ):
        assert run(monkeypatch, *arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1


def test_an_unusable_folder_is_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("in the way")
    assert run(monkeypatch, "embedded", "--to", tmp_path / "file") == 2
    assert "Choose a writable folder" in capsys.readouterr().err


def test_no_module_of_corpus_imports_torch():
    modules = sorted(
        path.stem for path in (Path(__file__).parents[2] / "corpus").glob("*.py") if path.stem[0] != "_"
    )
    code = (
        "import sys; "
        + "; ".join(f"import corpus.{name}" for name in modules)
        + "; assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], env=dict(os.environ)
    )
