"""submit, from the question to the folder: made-up runs, and once the real trainer and a clean process."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest
from optuna.trial import create_trial
from rich.console import Console

from claims.answers import BYTES
from claims.arms import arm_of_source, distinct, varied
from claims.compare import no_session
from claims.runs import Place, Runner, alone, register
from corpus.caseops import encode
from search import cli
from search.common.paths import Folders
from search.session.session import Session
from search.study.load import find_study
from search.trainers.trainer import trainer_of
from submission import submit as module
from submission.clean import Clean, Launch, reader_of, run_clean
from submission.needs import caseops_module, modules, requirements
from submission.question import EARLY, Question, Reference, Wish, found_plan, reference_of
from submission.submit import check, staged, submit
from submission.texts import readme
from tests.conftest import ROOT
from tests.search.db_helpers import alive
from tests.search.fake_studies import caddie, wait_for, write_study
from tests.submission.made_up_runs import LAYER, SCRIPT, clean_of, evidence_of, lay_down, run_of, shipped_of

Made = Callable[..., tuple[str, Path]]
BPB = (2.70, 2.71, 2.69)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """submit(LAYER against laptop) where all runs are there: (what was printed, the folder)."""
    (tmp_path / "mine.json").write_text(json.dumps(LAYER))
    monkeypatch.setattr(module, "lean", lambda _: SCRIPT)
    monkeypatch.setattr(module, "lean_source", lambda _: "import json, numpy")
    monkeypatch.setattr(
        "submission.question.place_of", lambda arms, asked, study: Place(asked.home, workers=2)
    )
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "data" / "tokenizers").mkdir(parents=True)
    (tmp_path / "data" / "tokenizers" / "embedded_1024_bpe.model").write_bytes(b"pieces")

    def one(better_by: float = 0.1, mine: Sequence[float] = BPB, clean: Any = None, **more: Any) -> Any:
        runs: dict[int, Any] = {}

        def lay(question: Question, console: Console) -> Any:
            mine_of = dict(zip(question.seeds, mine, strict=False))
            for arm in question.arms:
                by = 0.0 if arm is question.arm else better_by
                given = [run_of(seed, bpb + by, code_bytes=len(SCRIPT)) for seed, bpb in mine_of.items()]
                if not question.runner().folder(arm.label, question.seeds[0]).exists():
                    lay_down(question.runner(), arm.label, given)
                runs.update({run.seed: run for run in given} if arm is question.arm else {})
            return kept(question, console)

        kept = Question.run
        again = clean or (lambda folder, launch, seed, **_: clean_of(runs[seed]))
        monkeypatch.setattr(Question, "run", lay)
        monkeypatch.setattr(module, "run_clean", again)
        console = Console(file=io.StringIO(), width=80)
        wish = {"against": "laptop", "home": tmp_path, "to": tmp_path / "records"} | more
        try:
            told = submit(
                console, Wish(str(tmp_path / "mine.json"), name="Tiny, but honest!", author="me", **wish)
            )
        finally:
            monkeypatch.setattr(Question, "run", kept)
            one.printed = console.file.getvalue()  # type: ignore[attr-defined]
        return one.printed, told  # type: ignore[attr-defined]

    return one  # type: ignore[return-value]


def test_the_folder_is_whole(made: Made, tmp_path: Path) -> None:
    text, folder = made()
    assert (
        re.fullmatch(r"\d{4}-\d\d-\d\d_Tiny_but_honest", folder.name) and folder.parent.name == "local_record"
    )
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]  # nothing beside it
    said = json.loads((folder / "submission.json").read_text())
    logs = {f"train_seed{seed}.log" for seed in said["seeds"]}
    needed = {"train_gpt.py", "README.md", "submission.json", "requirements.txt", "embedded_1024_bpe.model"}
    assert {p.name for p in folder.iterdir()} == logs | needed
    assert (folder / "train_gpt.py").read_bytes() == SCRIPT
    assert re.fullmatch(r"numpy==[\d.]+\n", (folder / "requirements.txt").read_text())
    for seed, bpb in zip(said["seeds"], BPB, strict=True):
        reader = reader_of((folder / f"train_seed{seed}.log").read_text())
        assert reader.value()[1] == bpb == said["seed_results"][str(seed)]["val_bpb"]
        assert reader.artifact_bytes() == said["seed_results"][str(seed)]["artifact_bytes"]
    readme = (folder / "README.md").read_text()
    assert "laptop ran here on the same seeds" in readme and str(tmp_path) not in readme
    assert "p is twice the smaller one" in readme
    assert max(len(line) for line in text.splitlines() if "records" not in line and "plan" not in line) <= 80

    with pytest.raises(ValueError, match="written once, but"):
        made()


def test_caseops_data_bring_their_transform(made: Made, tmp_path: Path) -> None:
    """The folder holds caseops.py where the data has byte counts of its own, and not elsewhere."""
    data = tmp_path / "data" / "datasets" / "embedded_sp1024"
    data.mkdir(parents=True)
    (data / "fineweb_val_bytes_000000.bin").write_bytes(b"counts")
    _, folder = made()
    assert (folder / "caseops.py").read_text() == caseops_module()
    readme = (folder / "README.md").read_text()
    assert "`caseops.py`: the transform of the data" in readme and "`fineweb_val_bytes_000000.bin`" in readme
    assert not [*folder.glob("*.bin")], "they lie with the data"


def another_model(folder: Path, launch: Launch, seed: int, **_: Any) -> Clean:
    assert (folder / "train_gpt.py").read_bytes() == SCRIPT
    return replace(clean_of(run_of(seed, 2.7)), sha256="e" * 64)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"better_by": -0.1}, "  significance: val_loss is 0.17329 nats per token higher"),
        ({"clean": another_model}, "  clean process: seed"),
    ],
)
def test_what_is_refused_leaves_no_folder(made: Made, tmp_path: Path, how: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="Nothing was written: the track record asks for more"):
        made(**how)
    assert says in made.printed  # type: ignore[attr-defined]
    assert not [p for p in (tmp_path / "records").rglob("*") if p.is_file()]
    (verdict,) = tmp_path.glob("runs/submit/*/verdict.json")
    kept = json.loads(verdict.read_text())
    assert kept["holds"] is False and kept["shortfalls"][0].startswith(says.strip())
    assert len([*tmp_path.glob("runs/submit/*/*/*/result.json")]) == 6  # the evidence


def test_a_clean_process_that_fails_is_a_refusal(made: Made, tmp_path: Path) -> None:
    def fails(*_: Any, **__: Any) -> Clean:
        raise ValueError("the clean process ended with status 1: SyntaxError")

    with pytest.raises(ValueError, match="Nothing was written: the clean process ended with status 1"):
        made(clean=fails)
    assert not [p for p in (tmp_path / "records").rglob("*") if p.is_file()]
    made()  # and the same command goes on


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"against": ""}, "none is named. Name it with --against"),
        ({"against": "published:pr1855"}, "A published score is of 8×H100"),
        ({"against": "published:pr1"}, "has one of naive, pr1019"),
        ({"against": "1.O6"}, "A configuration is a preset"),
        ({"name": " "}, "a name and an author, each one line, but --name"),
        ({"seeds": 0}, "1 to 64 seeds"),
        ({"long": True}, "of 200 bytes at most, but --name has 240"),
        ({"track": "fast"}, "--track record or non-record"),
        ({"against": "SELF"}, "has the settings of"),
    ],
)
def test_what_no_run_could_mend_is_refused_before_any(
    made: Made, tmp_path: Path, wish: Any, says: str
) -> None:
    wish = {k: str(tmp_path / "mine.json") if v == "SELF" else v for k, v in wish.items()}
    if "long" in wish:  # in bytes, and before any seed trains
        long = Wish("laptop", name=80 * "日", author="me", track="non-record")
        with pytest.raises(ValueError, match=says):
            submit(Console(file=io.StringIO()), long)
        return
    if "name" in wish:
        for name in (" ", "two\nlines", "?!"):
            with pytest.raises(ValueError, match=says):
                submit(
                    Console(file=io.StringIO()), Wish("laptop", name=name, author="me", track="non-record")
                )
        return
    with pytest.raises(ValueError, match=says):
        made(**wish)
    assert not [*tmp_path.glob("runs/submit/*")]


def test_a_figure_is_a_record_with_its_note(made: Made) -> None:
    _, folder = made(against="2.90")
    text = (folder / "README.md").read_text()
    assert "the record (2.90 BPB)" in text and "how and where it was measured is not known here" in text
    published = reference_of(Wish("laptop", "n", "a", against="published:pr1855"))
    assert (
        published
        and published.bpb == 1.06108
        and "8×H100" in published.note
        and "phased TTT" in published.note
    )


def test_runs_of_confirm_count_and_so_do_its_contenders(tmp_path: Path) -> None:
    base = arm_of_source("laptop", no_session)
    others = [varied(f"matrix_lr={lr}", base)[1] for lr in (0.02, 0.03)]
    place = Place(tmp_path)
    plan = register("confirm", distinct([base, *others]), place, used=set())
    runner = Runner(plan, [base, *others], place, None)
    assert found_plan([others[1]], place, 3) is None  # nothing of it ran
    for arm, bpb in ((base, 2.9), (others[1], 2.7)):
        lay_down(runner, arm.label, [run_of(seed, bpb + k / 1000) for k, seed in enumerate(plan.seeds[:4])])
    renamed = replace(others[1], label="mine")
    found = found_plan([base, renamed], place, 3)
    assert found == plan
    question = Question(plan, others[1], Reference("laptop", base), place, plan.seeds[:4])
    results = question.run(Console(file=io.StringIO()))
    told = question.test(results, [])
    assert told and told.p < 0.01 and "2 times as large" in told.note and not (plan.folder / EARLY).exists()
    alone_p = replace(question, plan=replace(plan, question={"arms": {"a": 1}})).test(results, [])
    assert alone_p and told.p == pytest.approx(2 * alone_p.p)
    three = replace(question, seeds=plan.seeds[:3]).test(results, [])
    assert three and (plan.folder / EARLY).exists() and "twice the smaller" in three.note
    other = varied("matrix_lr=0.05", base)[1]
    assert found_plan([other], place, 3) is None
    plan_file = plan.folder / "plan.json"
    kept = json.loads(plan_file.read_text())
    kept["question"]["script"] = "another trainer's"
    plan_file.write_text(json.dumps(kept))
    assert found_plan([base, renamed], place, 3) is None


def test_a_vocabulary_does_not_decide_a_record(tmp_path: Path) -> None:
    """The reference's tokens are longer, and so their nats more: what counts is BPB, in nats of one's own."""
    theirs = varied("tokenizer_path=data/longer.model", arm_of_source("laptop", no_session))[1]
    mine = arm_of_source("laptop", no_session)
    place = Place(tmp_path)
    plan = register("submit", distinct([theirs, mine]), place, used=set())
    seeds = plan.seeds[:4]
    question = Question(plan, mine, Reference(theirs.label, theirs), place, seeds)
    for k, seed in enumerate(seeds):
        bpb = 2.7 + k / 1000
        ln2 = math.log(2.0)
        lay_down(question.runner(), mine.label, [run_of(seed, bpb - 0.001 * k)])  # 2.5 bytes a token
        lay_down(question.runner(), theirs.label, [run_of(seed, bpb, val_loss=bpb * 3.5 * ln2)])
    results = question.run(Console(file=io.StringIO()))
    told = question.test(results, [])
    assert told and not told.holds and told.p > 0.05 and BYTES in told.note
    expected = [-0.001 * k * 2.5 * ln2 for k in range(4)]
    assert list(told.differences) == pytest.approx(expected)
    assert "Tokenizer or data of laptop are not those of tokenizer_path=" in told.note
    text = readme(evidence_of(test=told), shipped_of())
    assert BYTES in text and "**does not hold**" in text


@pytest.mark.parametrize(("name", "differs"), [("naive", True), ("pr1855", True), ("1.1", False)])
def test_a_figure_of_another_tokenizer_is_told(tmp_path: Path, name: str, differs: bool) -> None:
    against = name if name[0].isdigit() else f"published:{name}"
    mine = arm_of_source("laptop", no_session)
    plan = register("submit", [mine], Place(tmp_path), used=set())
    reference = reference_of(Wish("laptop", "n", "a", against=against))
    question = Question(plan, mine, reference, Place(tmp_path), plan.seeds[:4])
    told = question.test({mine.label: {}}, [run_of(seed, 2.7) for seed in plan.seeds[:4]])
    assert told and (BYTES in told.note) is differs
    own = replace(question, arm=arm_of_source("pr549", no_session))  # of naive's own tokenizer
    again = own.test({"pr549": {}}, [run_of(seed, 2.7) for seed in plan.seeds[:4]])
    assert again and (BYTES in again.note) is (name == "pr1855")


def test_the_export_of_an_infeasible_trial_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command writes the script all the same, and no word of a trial that kept every limit."""
    study = find_study(write_study(tmp_path, "exported"))
    stored = optuna.create_study()
    config = {"preset": "laptop", "seed": 4}
    for size, over in ((400_000, -0.1), (2_100_000, 0.05)):
        attrs = {"config": config, "artifact_bytes": size}
        constraints = {"bytes": over, "train": -0.1, "eval": -0.1, "run": -1.0}
        stored.add_trial(create_trial(value=2.2, user_attrs=attrs, constraints=constraints))
    session = Session(study, Folders(tmp_path, "exported"), "", stored, trainer_of(study))
    told = list[str]()
    for number in (0, 1):
        reads = SimpleNamespace(read=lambda then: then(Console(), session))
        cli.export(to=tmp_path / str(number), trial=number, format="script", request=cast("Any", reads))
        told.append(capsys.readouterr().out)
        assert (tmp_path / str(number) / "train_gpt.py").exists() and "code bytes" in told[-1]
    assert "Not to be submitted" not in told[0]
    assert (
        "Not to be submitted: trial 1 of exported is over a limit (artifact, 2,100,000 of 2,000,000 bytes)."
        in told[1]
    )


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "t" / "name"
    (tmp_path / "t" / ".name.q").mkdir(parents=True)
    (tmp_path / "t" / ".name.q" / "of a killed one").touch()
    with pytest.raises(KeyError), staged(target, "q") as folder:
        (folder / "half").touch()
        raise KeyError
    assert not [*(tmp_path / "t").iterdir()]
    with staged(target, "q") as folder:
        assert not [*folder.iterdir()]
        (folder / "whole").touch()
    assert [p.name for p in target.iterdir()] == ["whole"]


def test_one_at_a_time(made: Made, tmp_path: Path) -> None:
    made()
    (plan,) = tmp_path.glob("runs/submit/*/plan.json")
    with alone(plan.parent), pytest.raises(ValueError, match="One process answers a question at a time"):
        made(to=tmp_path / "elsewhere")


def test_what_a_script_needs() -> None:
    source = "import os, numpy.linalg\nfrom sentencepiece import X\ndef f():\n import nowhere_to_be_found"
    assert modules(source) == ["nowhere_to_be_found", "numpy", "sentencepiece"]
    lines = requirements(source).splitlines()
    assert lines[0].startswith("# nowhere_to_be_found") and [
        line.partition("==")[0] for line in lines[1:]
    ] == [
        "numpy",
        "sentencepiece",
    ]
    with pytest.raises(ValueError, match="imports techniques of this project"):
        requirements("import techniques.base")


def test_the_transform_stands_alone(tmp_path: Path) -> None:
    scope: dict[str, Any] = {"__name__": "alone"}
    exec(caseops_module(), scope)
    text = "Hello WORLD, iPhone ▁ \ue001 é"
    assert scope["encode"](text) == encode(text) and scope["decode"](encode(text)) == text


PRINTS = """import os, sys
print(sorted(os.environ), sys.flags.isolated, file=sys.stderr)
try:
    import techniques
    sys.exit("the project is there")
except ImportError:
    pass
open("artifact.bin", "wb").write(b"x" * 7)
told = "final_int8_zlib_roundtrip_exact val_loss:1.5 val_bpb:%s" % os.environ.get("SEED", "2")
open("train.log", "w").write(told)
open(os.environ["DATA_PATH"] + "/ran", "a").write("once ")
"""


def test_the_clean_process_sees_nothing_of_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("MATRIX_LR", "9")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train_gpt.py").write_text(PRINTS)
    launch = Launch(tmp_path, "t.model")
    kept = tmp_path / "kept"
    found = run_clean(folder, launch, 2, own_seed=True, keep=kept)
    assert (found.val_bpb, found.model_bytes, found.script_bytes) == (2.0, 7, len(PRINTS))
    assert run_clean(folder, launch, 2, own_seed=True, keep=kept) == found
    assert run_clean(folder, launch, 3, own_seed=False, keep=kept).val_bpb == 3.0  # SEED=3
    assert (tmp_path / "ran").read_text() == "once once " and [p.name for p in folder.iterdir()] == [
        "train_gpt.py"
    ]
    for text, says in (
        ("raise OSError('a disk')", "ended with status 1: OSError: a disk"),
        ("", "left no train.log"),
        ("import time; time.sleep(60)", "still ran after 2 s"),
        (PRINTS.replace("val_bpb:%s", "no score %s"), "log: no score"),
    ):
        (folder / "train_gpt.py").write_text(text)
        with pytest.raises(ValueError, match=says):
            run_clean(folder, replace(launch, timeout_s=2.0 if "sleep" in text else 60.0), 2, own_seed=True)


def test_a_finished_folder_is_checked_against_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_PATH", str(tmp_path))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train_gpt.py").write_text(PRINTS)
    facts = {"val_bpb": 2.0, "model_bytes": 7, "sha256": hashlib.sha256(b"x" * 7).hexdigest()}
    again = {"tokenizer": "t.model", "ranks": 1, "threads": 1, "exact": True}
    said = {"seeds": [5], "seed_results": {"5": facts}, "bytes_code": len(PRINTS), "reproduction": again}
    (folder / "submission.json").write_text(json.dumps(said))
    console = Console(file=io.StringIO(), width=200)
    check(console, folder)
    assert "seed 5 again, equal: val_bpb 2.00000000" in console.file.getvalue()  # type: ignore[attr-defined]
    for change, says in (
        ({"bytes_code": 1}, "the script has "),
        (
            {"seed_results": {"5": facts | {"val_bpb": 2.00000001}}},
            "val_bpb 2.00000000 instead of 2.00000001",
        ),
        ({"seed_results": {"5": facts | {"sha256": "0" * 64}}}, "the packed model is "),
    ):
        (folder / "submission.json").write_text(json.dumps(said | change))
        with pytest.raises(ValueError, match=f"does not give what it says: {says}"):
            check(console, folder)
    (folder / "submission.json").write_text("{")
    with pytest.raises(ValueError, match="none that can be read"):
        check(console, folder)
    for theirs in ({}, [], said | {"seeds": []}, said | {"seed_results": {}}, {"val_bpb": 1.1}):
        (folder / "submission.json").write_text(json.dumps(theirs))
        with pytest.raises(ValueError, match="does not say that"):
            check(console, folder)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_folder_runs_again_and_a_broken_one_does_not(tiny: dict[str, str], tmp_path: Path) -> None:
    """The real trainer, then the finished folder in a clean process; and again with one byte changed."""
    (tmp_path / "mine.json").write_text(json.dumps({**tiny, "xsa": "1", "xsa.last_n": "1"}))
    words = [
        f"--config={tmp_path / 'mine.json'}",
        "--name=Real",
        "--author=me",
        "--track=non-record",
        "--seeds=1",
    ]
    ran = caddie("submit", *words, f"--home={tmp_path}", f"--to={tmp_path / 'records'}")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (folder,) = (tmp_path / "records" / "local_non_record").iterdir()
    said = json.loads((folder / "submission.json").read_text())
    (facts,) = said["seed_results"].values()
    (result,) = tmp_path.glob("runs/submit/*/*/*/result.json")
    whole = json.loads(result.read_text())
    assert facts["sha256"] == whole["sha256"] and facts["artifact_bytes"] == whole["artifact_bytes"]
    reader = reader_of((folder / f"train_seed{said['seeds'][0]}.log").read_text())
    assert reader.value()[1] == pytest.approx(whole["val_bpb"], abs=6e-9)
    assert reader.artifact_bytes() == whole["artifact_bytes"] and reader.steps == 6
    assert str(tmp_path) not in (folder / "README.md").read_text() + (folder / "submission.json").read_text()

    script = bytearray((folder / "train_gpt.py").read_bytes())
    script[len(script) // 2] ^= 1
    (folder / "train_gpt.py").write_bytes(script)
    with pytest.raises(ValueError, match="does not give what it says: the clean process ended with status 1"):
        check(Console(file=io.StringIO()), folder)


SLEEPS = (
    "import os, time\nopen(os.environ['DATA_PATH'] + '/pid', 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
)
RUNS = """import sys
from pathlib import Path
from submission.clean import Launch, run_clean
run_clean(Path(sys.argv[1]), Launch(Path(sys.argv[2]), "t.model"), 1, own_seed=True)
"""


def test_a_clean_process_dies_with_us(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train_gpt.py").write_text(SLEEPS)
    words = [sys.executable, "-c", RUNS, str(folder), str(tmp_path)]
    us = subprocess.Popen(words, cwd=ROOT)
    wait_for(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text()), 60)
    us.kill()
    us.wait()
    wait_for(lambda: not alive(int((tmp_path / "pid").read_text())), 30)
