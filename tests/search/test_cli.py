"""The command line: bad input is one error on stderr and exit status 2; help and reading are quick."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.search.fake_studies import ROOT, caddie, read_trials, search, states, write_study

pytestmark = pytest.mark.slow


def refused(ran: subprocess.CompletedProcess[str], *says: str) -> None:
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert ran.stderr.count("error: ") == 1 and "Traceback" not in ran.stderr, ran.stderr
    for words in says:
        assert words in ran.stderr, ran.stderr


def test_help_needs_neither_torch_nor_optuna() -> None:
    code = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from search.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'optuna', 'sqlalchemy', 'numpy'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--trials" in ran.stdout and "dashboard" in ran.stdout and ran.stdout.strip().endswith("[]")


@pytest.mark.parametrize("command", ["status", "leaderboard", "trial"])
def test_a_reader_loads_no_more_than_it_reads_with(command: str) -> None:
    code = (
        f"import sys, search.report.{command}, search.storage.patient as p\n"
        "from search.storage.bulk import unversioned, rdb\n"
        "with unversioned(): rdb._VersionManager('url', None, None)\n"
        "print(sorted({'torch', 'scipy', 'boto3', 'alembic', 'plotly', 'pandas'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_no_such_study_file(home: Path) -> None:
    refused(caddie("--study=/nowhere/x.toml", f"--home={home}"), "No such study file")


def test_reading_a_study_that_was_never_begun_makes_nothing(tmp_path: Path) -> None:
    study = write_study(tmp_path, "never")
    refused(caddie("status", f"--study={study}", f"--home={tmp_path / 'h'}"), "never", "Start it with")
    assert not (tmp_path / "h").exists()


def test_no_trials_store_no_study(tmp_path: Path) -> None:
    study = write_study(tmp_path, "none")
    home = tmp_path / "h"
    ran = caddie("--trials=0", f"--study={study}", f"--home={home}")
    assert ran.returncode == 0 and "stores nothing" in ran.stdout, ran.stderr
    assert not (home / ".caddie").exists()


def test_unreachable_database_is_told_without_its_password(home: Path) -> None:
    study = write_study(home, "far")
    url = "postgresql://me:hush@127.0.0.1:1/db"
    began = time.monotonic()
    ran = caddie(*search(study, home, 1, 1), CADDIE_STORAGE=url)
    refused(ran, "127.0.0.1")
    assert "hush" not in ran.stderr + ran.stdout and time.monotonic() - began < 60


def test_a_gpu_that_is_demanded_and_not_there(home: Path) -> None:
    study = write_study(home, "gpu")
    study.write_text(study.read_text().replace("[fixed]", '[fixed]\ndevice = "cuda"'))
    refused(caddie(*search(study, home, 1, 1), CUDA_VISIBLE_DEVICES=""), "demands a GPU")


def test_a_missing_corpus(home: Path) -> None:
    study = write_study(home, "nodata")
    study.write_text(study.read_text().replace("[fixed]", '[fixed]\ndata_path = "/nowhere/data"'))
    words = [w for w in search(study, home, 1, 1) if "--trainer" not in str(w)]
    refused(caddie(*words), "/nowhere/data")
    study.write_text(study.read_text().replace("/nowhere/data", "/nowhere/fineweb10B_sp1024"))
    refused(caddie(*words), "`python -m corpus download --variant sp1024 --train-shards 1`")


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    study = write_study(tmp_path, "nohome")
    refused(caddie(*search(study, tmp_path / "file", 1, 1)), "Nothing stored is lost")


def test_a_study_in_which_nothing_fits(home: Path) -> None:
    study = write_study(home, "tight")
    study.write_text(study.read_text().replace("2_000_000", "2_000"))
    refused(caddie(*search(study, home, 1, 1)), "2,000 bytes")


def test_an_edited_study_is_refused_and_goes_on_once_restored(home: Path) -> None:
    study = write_study(home, "edited")
    before = study.read_text()
    assert caddie(*search(study, home, 1, 1)).returncode == 0
    study.write_text(before.replace("high = 0.1,", "high = 0.2,"))
    refused(caddie(*search(study, home, 2, 1)), "restore the file", "another `name`")
    study.write_text(before)
    assert caddie(*search(study, home, 2, 1)).returncode == 0
    assert states(read_trials(study, home)) == {"COMPLETE": 2}
    again = caddie(*search(study, home, 2, 1))
    assert again.returncode == 0 and "Nothing to do" in again.stdout and "Best: #" in again.stdout
    shown = caddie("show", "1", f"--study={study}", f"--home={home}")
    assert shown.returncode == 0 and "matrix_lr" in shown.stdout, shown.stderr
    assert "python tests/search/fake_trainer.py " in shown.stdout and "again" in shown.stdout  # what it ran
    refused(
        caddie("export", "--trial=1", f"--to={home / 'out'}", f"--study={study}", f"--home={home}"),
        "fake_trainer.py",
    )
    refused(caddie("show", "9", f"--study={study}", f"--home={home}"), "trials 0 to 1, but not 9")


def test_a_worker_count_of_zero_is_refused(home: Path) -> None:
    ran = caddie("--workers=0", f"--home={home}")
    assert ran.returncode == 2 and "workers" in ran.stderr
