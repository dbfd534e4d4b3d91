"""compare with the fake trainer: its answers, its folder, and that it goes on where it was killed."""

import io
import json
import re
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import create_trial
from rich.console import Console

from claims import compare as module
from claims.answers import BYTES, Answer
from claims.arms import arm_of_source, varied
from claims.compare import Asked, compare, no_session
from claims.race import Chains, race
from claims.runs import Place, Plan, Run, Runner
from claims.sequential import LEVEL
from search.common.paths import Folders
from search.session.session import Session
from search.stage_cache.addresses import Ground
from search.stage_cache.reuse import Reuse
from search.stage_cache.store import Store
from search.study.load import find_study
from search.trainers.process import Outcome
from search.trainers.trainer import trainer_of
from techniques.config import Config
from tests.search.fake_studies import FAKE, begin, caddie, wait_for, write_study

Ask = Callable[..., tuple[str, list[Answer]]]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """compare(words) under a home of its own: (what was printed, answers)."""
    monkeypatch.setenv("FAKE_SECONDS", "0")

    def one(*words: str, noise: float = 0.005, **more: Any) -> tuple[str, list[Answer]]:
        monkeypatch.setenv("FAKE_NOISE", str(noise))
        console = Console(file=io.StringIO(), width=80)
        told = compare(console, Asked(words=words, home=tmp_path, trainer=FAKE, **more))
        return console.file.getvalue(), told  # type: ignore[attr-defined]

    return one


def widest(text: str) -> int:
    """Columns of the widest line, the plan's path apart."""
    return max(len(line) for line in text.splitlines() if not line.startswith("plan"))


def outcomes(home: Path) -> list[Path]:
    return sorted(home.glob("runs/compare/*/*/*/outcome.json"))


def test_an_effect_is_told_once_it_is_clear_and_kept(ask: Ask, tmp_path: Path) -> None:
    text, (told,) = ask("matrix_lr=0.02,0.04")
    assert (
        told.kind == "helps"
        and told.verdict.pairs < 12
        and told.verdict.mean == pytest.approx(-0.2, abs=0.01)
    )
    assert "matrix_lr=0.04 helps: val_bpb is 0." in text and "99 % interval" in text
    assert widest(text) <= 80
    assert re.search(r"400,000\s+0\.2\s+0\.1", text)
    (plan,) = tmp_path.glob("runs/compare/*/plan.json")
    kept = json.loads(plan.read_text())
    assert len(set(kept["seeds"])) == 64 and 1337 not in kept["seeds"] and kept["registered"]
    facts = json.loads((plan.parent / "answer.json").read_text())
    assert facts["answers"][0]["answer"] == "helps" and facts["answers"][0]["mean"] == told.verdict.mean
    assert [run["seed"] for run in facts["runs"]["matrix_lr=0.02"]][:4] == kept["seeds"][:4]
    done = outcomes(tmp_path)
    assert {int(p.parent.name) for p in done} <= set(kept["seeds"][: told.verdict.pairs + 2])
    config = json.loads((done[0].parent / "config.json").read_text())
    assert config["seed"] == int(done[0].parent.name) and config["num_threads"] == 1

    times = [p.stat().st_mtime_ns for p in done]
    again, (same,) = ask("matrix_lr=0.02,0.04")
    assert same.verdict == told.verdict and "are here already" in again
    assert [p.stat().st_mtime_ns for p in done] == times
    assert again.splitlines()[-5:] == text.splitlines()[-5:]


def test_what_ended_beside_a_decision_counts_when_one_asks_again(tmp_path: Path) -> None:
    """Seed 5 of both arms still runs when seed 4 decides, and ends."""
    arms = varied("matrix_lr=0.02,0.04", arm_of_source("laptop", no_session))
    labels = {arm.label for arm in arms}
    seeds = range(1, 7)

    class Late(Runner):
        begun = threading.Barrier(3)

        def _tried(self, label: str, seed: int) -> Outcome:
            if (label, seed) == (arms[1].label, 4) or seed == 5:
                self.begun.wait(20)
            if seed == 5:
                self.stopping.wait(20)
            return Outcome("finished", result={"val_bpb": float(seed)})

    def settled(results: Any) -> set[str]:
        return labels if all({1, 2, 3, 4} <= set(results[label]) for label in labels) else set()

    def asked(runner: Runner) -> Any:
        return race(runner, seeds, settled=settled, tell=lambda label, run: None)

    plan = Plan(tmp_path, "q", tuple(seeds), {})
    place = Place(tmp_path, workers=3)
    first = asked(Late(plan, arms, place, None))
    assert first == {label: {n: Run(n, "", {"val_bpb": n}) for n in range(1, 6)} for label in labels}
    assert asked(Runner(plan, arms, place, None)) == first


def test_more_seeds_go_on_with_the_same_ones(ask: Ask, tmp_path: Path) -> None:
    text, (told,) = ask("matrix_lr=0.0400,0.0401", noise=0.05, seeds=4)
    assert told.kind == "undecided" and "undecided after 4 seeds each: " in text and "more seeds" in text
    few = outcomes(tmp_path)
    _, (more,) = ask("matrix_lr=0.0400,0.0401", noise=0.05, seeds=5)
    assert more.verdict.pairs == 5 and set(few) < set(outcomes(tmp_path)) and len(few) == 8


def test_what_makes_no_difference_is_told(ask: Ask) -> None:
    text, (told,) = ask("matrix_lr=0.0400,0.0401", noise=0.001)
    assert told.kind == "same"
    assert "no difference larger than 0.01 bits per byte (95 %)" in " ".join(text.split())


def test_each_mode_is_answered(ask: Ask) -> None:
    text, told = ask("smear_gate.mode=previous,average", noise=0.001)
    assert [one.arm for one in told] == ["smear_gate.mode=previous", "smear_gate.mode=average"]
    assert {one.base for one in told} == {"laptop"} and {one.kind for one in told} == {"same"}
    assert text.count("makes no difference") == 2 and widest(text) <= 80


def test_a_technique_alone_shares_its_level_among_its_modes(ask: Ask, tmp_path: Path) -> None:
    text, told = ask("smear_gate", noise=0.001, seeds=5)
    assert [one.arm for one in told] == [
        f"smear_gate.mode={m}" for m in ("previous", "average", "input_gate")
    ]
    (path,) = tmp_path.glob("runs/compare/*/answer.json")
    levels = {one["level"] for one in json.loads(path.read_text())["answers"]}
    assert levels == {LEVEL / 3} and widest(text) <= 80


def test_an_arm_that_fails_is_given_up_and_told(ask: Ask, tmp_path: Path) -> None:
    for name, lr, mode in (("[red]good", 0.02, "ok"), ("bad", 0.04, "diverged")):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"preset": "laptop", "matrix_lr": lr, "run_id": mode})
        )
    words = (str(tmp_path / "[red]good.json"), str(tmp_path / "bad.json"))
    text, (told,) = ask(*words)
    assert told.kind == "fails"  # a third run may end before it is stopped
    assert re.search(r"bad fails: ([23]) of \1 runs have no score \(diverged: ", " ".join(text.split()))
    assert re.search(r"^\[red\]good  ", text, re.M)  # rich has it for a colour
    text, (told,) = ask(*reversed(words))
    assert told.kind == "base fails"
    assert re.search(r"bad fails: ([23]) of \1 runs", " ".join(text.split()))


def test_a_trainer_that_refuses_or_crashes(ask: Ask, tmp_path: Path) -> None:
    for name, lr in (("refuse", 0.02), ("crash", 0.03)):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"preset": "laptop", "matrix_lr": lr, "run_id": name})
        )
    with pytest.raises(ValueError, match=r"must take what is compared.*shard 3 is cut"):
        ask(str(tmp_path / "refuse.json"))
    _, (told,) = ask(str(tmp_path / "crash.json"))
    assert told.kind == "fails" and told.failed["crash"][0].reason == "crashed twice"


def test_a_study_gives_the_base_and_the_limits(ask: Ask, tmp_path: Path) -> None:
    study = find_study(write_study(tmp_path, "large", "big"))
    text, (told,) = ask("matrix_lr=0.02", study=study)
    flat = " ".join(text.split())
    assert (told.base, told.kind) == ("large", "hurts")
    assert "matrix_lr=0.02 is over a limit: artifact, 90,000,000 of 2,000,000 bytes." in flat
    assert "large is over a limit" in flat


def test_data_that_is_not_here_is_told(tmp_path: Path) -> None:
    config = replace(Config(), data_path=str(tmp_path / "fineweb10B_sp512"), tokenizer_path="none")
    with pytest.raises(ValueError, match="corpus download --variant sp512 --train-shards 1"):
        module.check_data_of(config)
    with pytest.raises(ValueError, match="is no folder"):
        module.check_data_of(replace(config, data_path=str(tmp_path / "mine")))


def test_the_number_of_seeds_has_ends(ask: Ask) -> None:
    for seeds in (3, 65):
        with pytest.raises(ValueError, match="4 to 64 seeds"):
            ask("smear_gate", seeds=seeds)


def test_what_is_no_width_is_refused(ask: Ask) -> None:
    with pytest.raises(ValueError, match="`--within` must be a finite number"):
        ask("smear_gate", within=float("inf"))


def test_tokenizers_that_differ_are_told(ask: Ask, tmp_path: Path) -> None:
    text, _ = ask("tokenizer_path=data/other.model", noise=0.001, seeds=4)
    assert BYTES in " ".join(text.split())
    (answers,) = tmp_path.glob("runs/compare/*/answer.json")
    (facts,) = json.loads(answers.read_text())["answers"]
    assert facts["sentence"].endswith(BYTES), "the report's text"
    text, _ = ask("matrix_lr=0.04,0.0401", noise=0.001, seeds=4)
    assert "SentencePiece" not in text
    text, _ = ask("data_path=data/other", noise=0.001, seeds=4)
    assert "SentencePiece" not in text, "the same bytes are counted"


def test_a_trial_is_a_base(ask: Ask, tmp_path: Path) -> None:
    """compare --base TRIAL: the trial's own settings stand below both arms, and its study's limits hold."""
    study = find_study(write_study(tmp_path, "of_trials"))
    stored = optuna.create_study()
    config = {"preset": "laptop", "matrix_lr": 0.03, "seed": 4}
    stored.add_trial(create_trial(value=2.2, user_attrs={"config": config}))
    stored.add_trial(create_trial(value=2.2, user_attrs={"config": config | {"run_id": "big"}}))
    session = Session(study, Folders(tmp_path, "of_trials"), "", stored, trainer_of(study))
    _, (told,) = ask("smear_gate.mode=average", noise=0.001, seeds=4, base="0", session=lambda: session)
    assert (told.base, told.kind) == ("#0", "same")
    (plan,) = tmp_path.glob("runs/compare/*/plan.json")
    arms = json.loads(plan.read_text())["question"]["arms"]
    assert {arm["values"]["matrix_lr"] for arm in arms.values()} == {0.03} and len(arms) == 2
    text, _ = ask("smear_gate.mode=average", noise=0.001, seeds=4, base="1", session=lambda: session)
    assert "#1 is over a limit: artifact" in " ".join(text.split())
    with pytest.raises(ValueError, match="2"):
        ask("smear_gate.mode=average", base="2", session=lambda: session)


def test_the_data_of_each_arm_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder"):
        compare(Console(file=io.StringIO()), Asked(words=("data_path=/nowhere",), home=tmp_path))


def test_arms_that_share_their_training_run_one_after_the_other(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Chains.of(["a", "b", "c"], {"a": "1", "b": "2", "c": "1"}.__getitem__).groups == [
        ["a", "c"],
        ["b"],
    ]
    seen: list[str] = []

    class Spy(Reuse):
        def addresses(self, resolved: Any) -> dict[str, str]:
            seen.append("asked")
            return {"average": "one"}

    def spied(place: Any) -> Reuse:
        return Spy(Store(tmp_path / "cache"), Ground(1, 1, {}))

    monkeypatch.setattr(module, "reuse_of", spied)
    _, (told,) = ask("sliding_window", noise=0.001)
    assert told.kind == "same" and seen
    seen.clear()
    monkeypatch.setattr(Spy, "addresses", lambda self, resolved: {"average": resolved.hash()})
    monkeypatch.setattr(Spy, "keep", lambda *_: seen.append("kept"))
    ask("leaky_relu2", noise=0.001)
    assert not seen  # nothing to share: nothing is stored


@pytest.mark.slow
def test_killed_half_way_it_goes_on(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, lr in zip(paths, (0.04, 0.0401), strict=True):
        path.write_text(json.dumps({"preset": "laptop", "matrix_lr": lr, "run_id": "mute"}))
    words = ["compare", *paths, f"--home={tmp_path}", f"--trainer={FAKE}", "--seeds=6", "--workers=2"]
    running = begin(*words, FAKE_SECONDS="10", FAKE_NOISE="0.05")
    wait_for(lambda: len(outcomes(tmp_path)) >= 2)
    second = caddie(*words, FAKE_SECONDS="0.1", FAKE_NOISE="0.05")
    assert second.returncode == 2 and "answers a question at a time" in second.stderr
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 130 and "goes on from here" in errors
    kept = {p: p.stat().st_mtime_ns for p in outcomes(tmp_path)}
    ran = caddie(*words, FAKE_SECONDS="0.1", FAKE_NOISE="0.05")
    assert ran.returncode == 0, ran.stderr
    assert f"{len(kept)} runs of this question are here already" in ran.stdout
    assert all(p.stat().st_mtime_ns == at for p, at in kept.items()) and len(outcomes(tmp_path)) == 12
    assert "undecided after 6 seeds each" in ran.stdout
