"""The commands of the four users' pages run, one after the other as they stand, in a home of their own.

What a page leaves to its reader is filled in: a configuration, a script, a study with another name. The
fake trainer stands for a training, and a study of GPUs is the same on the CPU; trials and seeds are few. What
needs a real training or the network, or runs until it is stopped, is in ELSEWHERE with the test that runs it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.cli import app
from tests.conftest import ROOT
from tests.search.fake_studies import FAKE, clear
from tests.test_documented_commands import commands

PAGES = ("README.md", "tour.md", "tonight.md", "claims.md", "any_trainer.md", "prior.md")
ELSEWHERE = {  # program or command -> (the file of tests that runs it, what stands there)
    "submit": ("tests/submission/test_submit.py", "def test_a_real_folder_runs_again"),
    "dashboard": ("tests/search/report/test_dashboard.py", "def test_the_command_serves_the_report"),
    "corpus": ("tests/corpus/test_corpus_cli.py", "def test_build_check_info"),
    "validate.py": ("tests/conformance/test_validate.py", "validate.main("),
    "train_gpt.py": ("tests/test_presets.py", "def test_smoke_run"),
}
TRIALS = {"laptop": 21, "one_gpu": 9, "record_8xh100": 6, "own_text": 2, "theirs": 4, "new": 3, "newer": 2}
PLAIN = """
import os
LEARNING_RATE = float(os.environ.get("LEARNING_RATE", 0.02))
print(f"step:1/1 train_loss:{2 + LEARNING_RATE} train_time:5ms")
print(f"final val_loss:2.0 val_bpb:{1 + LEARNING_RATE} eval_time:4ms")
print("Total submission size: 7000 bytes")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "studies").mkdir()
    for study in (ROOT / "studies").glob("*.toml"):
        text = study.read_text().replace('device = "cuda"', 'device = "cpu"')
        text = re.sub(r"gpus_per_trial = \d", "gpus_per_trial = 1", text)
        if study.stem in (
            "one_gpu",
            "record_8xh100",
        ):  # a CPU is too slow for it, a start without baseline too vague
            text = re.sub(r"(_bytes|_seconds) = [\d_]+", r"\1 = 1_000_000_000", text)
        (folder / "studies" / study.name).write_text(text)
    laptop = (folder / "studies" / "laptop.toml").read_text()
    for name in ("new", "newer"):
        (folder / f"{name}.toml").write_text(laptop.replace('name = "laptop"', f'name = "{name}"'))
    (folder / "their").mkdir()
    for name in ("train.py", "train_gpt.py"):
        (folder / "their" / name).write_text(PLAIN)
    for k, name in enumerate(("A", "B", "mine")):
        settings = {"preset": "laptop", "matrix_lr": 0.02 + 0.01 * k, "smear_gate": name == "mine"}
        (folder / f"{name}.json").write_text(json.dumps(settings))
    yield folder
    clear(folder)


def as_run(words: list[str], home: Path) -> list[str]:
    """As it stands, in this home, with the fake trainer, few trials and few seeds."""
    command = next((w for w in words if not w.startswith("-")), "") if not words[0].startswith("-") else ""
    if "OLD,OLD2" in words:
        words = ["--study", "newer.toml", "--from", "OLD,OLD2"]
    words = [{"OLD": "laptop", "OLD,OLD2": "laptop,new"}.get(word, word) for word in words]
    study = Path(words[words.index("--study") + 1]).stem if "--study" in words else "laptop"
    if command == "scan":
        (home / "theirs.toml").unlink(missing_ok=True)
        return [word for word in words if word not in ("--try", "12")]  # its runs: test_tries.py
    if "--home" in words:
        del words[words.index("--home") : words.index("--home") + 2]
    if not command:
        many = int(words[words.index("--trials") + 1]) if "--trials" in words else 200
        words = [w for k, w in enumerate(words) if "--trials" not in words[max(0, k - 1) : k + 1]]
        words = [*words, "--trials", str(min(many, TRIALS[study]))]
    if (command or study) not in ("theirs", "status", "best", "show", "effects", "report"):
        words += [] if "--trainer" in words else ["--trainer", str(FAKE)]
    if command in ("compare", "confirm", "ablate"):
        words += ["--seeds", "4"]
    if command == "ablate" and "--minutes" not in words:
        words += ["--minutes", "0.1"]
    return [*words, "--home", str(home)]


def ran(words: list[str], home: Path) -> tuple[int, str]:
    """(exit status, what was printed) of a command in a process of its own, which imports nothing again."""
    out = home / "out.txt"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.chdir(home)
            os.environ.update(FAKE_SECONDS="0", FAKE_NOISE="0.003", FAKE_BYTES="200000", COLUMNS="80")
            with out.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.stdout = open(1, "w", closefd=False)
            sys.stderr = open(2, "w", closefd=False)
            app(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), out.read_text()


def of_pages() -> Iterator[tuple[str, list[str]]]:
    """Each once: (its page, the words). Studies first: what reads them stands on other pages, too."""
    found: dict[tuple[str, ...], str] = {}
    for page, program, words in commands():
        name = program if program != "search.py" else next((w for w in words if w in ELSEWHERE), "")
        if page in PAGES and name not in ELSEWHERE and words != ["ablate"]:  # its name alone
            found.setdefault(tuple(words), page)
    searches = {"scan": 0, "--trials": 1, "--study": 2, "--trainer": 3}
    ordered = sorted(found, key=lambda words: (searches.get(words[0], 4), "OLD,OLD2" in words))
    scans = [words for words in ordered if words[0] == "scan"]
    for words in [*reversed(scans), *ordered[len(scans) :]]:  # the last draft is of the script that is run
        yield found[words], list(words)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_command_of_the_users_pages_runs(home: Path) -> None:
    bad: list[str] = []
    for page, words in of_pages():
        told = as_run(words, home)
        status, text = ran(told, home)
        if status and "at least 20 complete trials" not in text:  # `effects` of a study of fewer
            bad.append(f"{page}: {' '.join(words)}\n  as {' '.join(told)}: {status}\n{text[-600:]}")
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_others_have_a_test_of_their_own(name: str) -> None:
    file, says = ELSEWHERE[name]
    assert says in (ROOT / file).read_text(encoding="utf-8")
