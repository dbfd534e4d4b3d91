"""confirm: the race of contenders, what is stored with the study, and that the leaderboard ranks by it."""

import io
import json
import math
import random
import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from claims import confirm as module
from claims.answers import BYTES
from claims.arms import Arm
from claims.compare import Asked
from claims.confirm import Confirmed, confirm, confirm_at_end, reference_of, seed_sd, shrunken
from claims.runs import Run, Runner
from claims.sequential import LEVEL, least_told
from pages.facts import facts_of
from pages.words import advice
from search.common.attributes import BASELINE, CONFIRMED
from search.common.paths import Folders
from search.report.dashboard import FeasibleStorage
from search.report.leaderboard import print_leaderboard
from search.report.rows import confirmed_of, ranked
from search.report.status import print_status
from search.report.trial import print_trial
from search.session.session import Session
from search.study.load import find_study
from search.study.model import Confirm
from search.trainers.process import Outcome
from search.trainers.trainer import trainer_of
from techniques.config import digest
from tests.search.fake_studies import FAKE, caddie, clear, read_trials, search, write_study

KEPT = {"bytes": -0.1, "train": -0.1, "eval": -0.1, "run": -1.0}


def trial_of(value: float, lr: float, **config: Any) -> FrozenTrial:
    """A feasible trial of the fake trainer, whose true score is 2 + |lr - 0.05|·10."""
    whole = {"preset": "laptop", "matrix_lr": lr, "seed": 1337, **config}
    attrs = {"config": whole, "hash": f"{lr} {config}", "steps": 10, "artifact_bytes": 400_000}
    return create_trial(
        state=TrialState.COMPLETE,
        value=value,
        params={"matrix_lr": lr},
        distributions={"matrix_lr": FloatDistribution(0.01, 0.1)},
        constraints=KEPT,
        user_attrs={**attrs, "train_seconds": 0.2, "eval_seconds": 0.1},
    )


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """The luckiest trial, #0, is truly worse than #1 and #2."""
    monkeypatch.setenv("FAKE_SECONDS", "0")
    monkeypatch.setenv("FAKE_NOISE", "0.004")
    stored = optuna.create_study()
    stored.set_user_attr(BASELINE, {"val_bpb": 2.1})
    for value, lr in ((1.99, 0.03), (2.05, 0.048), (2.06, 0.047), (2.4, 0.02), (2.5, 0.01)):
        stored.add_trial(trial_of(value, lr))
    path = write_study(tmp_path, "told")
    url = f"sqlite:///{tmp_path}/none"
    monkeypatch.setattr(module, "creation_lock", lambda _: open(tmp_path / "lock", "w"))
    study = find_study(path)
    return Session(study, Folders(tmp_path, "told"), url, stored, trainer_of(study))


def confirmed(session: Session, **more: Any) -> tuple[str, list[Confirmed]]:
    console = Console(file=io.StringIO(), width=80)
    asked = Asked(seeds=more.pop("seeds", 8), home=session.folders.home, trainer=FAKE)
    found = confirm(console, session, asked, top=more.pop("top", 3), against=more.pop("against", ""))
    return console.file.getvalue(), found  # type: ignore[attr-defined]


def printed(show: Any, *arguments: Any, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(console, *arguments)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_lucky_one_is_found_out(session: Session) -> None:
    before = printed(print_leaderboard, session)
    assert "Best: #0, observed 1.9900" in before
    assert f"search.py confirm --top 3 --study {shlex.quote(session.study.path)}" in before
    text, found = confirmed(session)
    assert [one.contender.number for one in found] == [1, 2, 0]
    lucky = found[-1]
    assert lucky.beaten_by and "It is worse than #" in " ".join(text.split())
    assert lucky.answer.verdict.pairs < 8  # it ran no more
    assert 1.99 < lucky.shrunken < 2.05
    assert max(len(line) for line in text.splitlines() if not line.startswith("plan")) <= 80
    assert found[0].answer.base == "baseline" and "baseline" in text and "shrunken = " in text
    assert "Every seed's BPB" in text

    facts = confirmed_of(session.optuna_study)
    assert set(facts) == {0, 1, 2} and facts[1]["bpb"] == pytest.approx(2.02, abs=0.01)
    assert len(facts[1]["seeds"]) >= 4 and "1337" not in facts[1]["seeds"]
    assert facts[1]["rule"] is False  # the fake's nats are all equal
    after = printed(print_leaderboard, session)
    assert "confirmed BPB" in after and "search value 2.0500" in after and "Best: #1, 2.0" in after
    assert "confirm the best" not in after and "; on fresh seeds trial #1 stands -0." in after
    rows = [line for line in after.splitlines() if line.strip().startswith("#")]
    assert [row.split()[0] for row in rows] == ["#1", "#2", "#0", "#3", "#4"]
    assert "1.9900" in rows[2] and "±" in rows[2] and "±" not in rows[3]  # both values
    assert "One seed each but for #1, #2, #0: a seed alone" in " ".join(after.split())
    assert "confirmed 2.0" in printed(print_leaderboard, session, width=80)
    assert "Best: #1, 2.0" in printed(print_status, session)
    assert "seeds), -0." in printed(print_trial, session, 1)


def test_the_start_has_its_fresh_seeds_too(session: Session) -> None:
    """Else a contender that is worse would stand above it."""
    start = trial_of(2.11, 0.04)
    start.user_attrs["hash"] = digest(reference_of(session).identity())
    session.optuna_study.add_trial(start)
    session.optuna_study.add_trial(trial_of(1.97, 0.015))  # luck: truly 2.35
    confirmed(session, top=1, seeds=4)
    facts = confirmed_of(session.optuna_study)
    assert set(facts) == {5, 6} and facts[5]["bpb"] == pytest.approx(2.1, abs=0.01)
    after = printed(print_leaderboard, session)
    assert f"Best: #5, {facts[5]['bpb']:.4f} ±" in after and "trial #5 stands +0.0000 from baseline" in after
    assert "rule" not in facts[5] and facts[6]["rule"] is False
    assert "Ranked by the mean on fresh seeds where there is one, else by the BPB" in after


def test_the_same_question_is_answered_from_what_is_kept(session: Session) -> None:
    first, found = confirmed(session, top=2, seeds=4)
    before = dict(session.optuna_study.user_attrs[CONFIRMED])
    again, same = confirmed(session, top=2, seeds=4)
    assert "runs of this question are here already" in again
    assert [s.answer.verdict for s in same] == [f.answer.verdict for f in found]
    assert again.splitlines()[-4:] == first.splitlines()[-4:]
    _, one = confirmed(session, top=1, seeds=4, against="2")
    assert one[0].answer.base == "#2"
    after = session.optuna_study.user_attrs[CONFIRMED]
    assert after["0"]["against"] == "#2" and after["1"]["seeds"] == before["1"]["seeds"]


def test_what_fails_or_is_over_a_limit_is_ranked_last(session: Session) -> None:
    session.optuna_study.add_trial(trial_of(1.5, 0.05, run_id="diverged"))
    session.optuna_study.add_trial(trial_of(1.6, 0.0501, run_id="big"))
    text, _ = confirmed(session, top=4, seeds=4)
    flat = " ".join(text.split())
    assert re.search(r"#5 fails: [23] of", flat)
    assert "over a limit: artifact, 90,000,000 of 2,000,000 bytes" in flat
    good, _ = ranked(session.optuna_study.trials, confirmed_of(session.optuna_study))
    assert [t.number for t in good[:2]] == [1, 0] and {t.number for t in good[-2:]} == {5, 6}
    board = printed(print_leaderboard, session)
    assert re.search(r"no score \([23] seeds\)!", board) and "Best: #1" in board


def test_fewer_seeds_do_not_replace_more(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NOISE", "0.5")
    confirmed(session, top=2, seeds=6)
    before = session.optuna_study.user_attrs[CONFIRMED]
    assert {len(facts["seeds"]) for facts in before.values()} == {6}
    confirmed(session, top=2, seeds=4)
    after = session.optuna_study.user_attrs[CONFIRMED]
    assert all(len(after[n]["seeds"]) == len(before[n]["seeds"]) for n in before)


def test_the_beaten_one_stands_behind_whatever_its_mean(session: Session) -> None:
    """Its mean is of the first seeds alone."""
    facts = {"sd": None, "seeds": {}, "sound": True}
    told = {
        "0": {**facts, "bpb": 2.0, "beaten_by": "#1"},
        "1": {**facts, "bpb": 2.1, "beaten_by": ""},
        "2": {**facts, "bpb": 1.9, "beaten_by": "", "sound": False},
    }
    session.optuna_study.set_user_attr(CONFIRMED, told)
    good, _ = ranked(session.optuna_study.trials, confirmed_of(session.optuna_study))
    assert [t.number for t in good] == [1, 0, 3, 4, 2]

    storage = FeasibleStorage.__new__(FeasibleStorage)
    shown = {
        "get_all_trials": lambda *_, **__: session.optuna_study.trials,
        "get_study_user_attrs": lambda _: session.optuna_study.user_attrs,
    }
    for name, given in shown.items():
        object.__setattr__(storage, name, given)
    assert storage.get_best_trial(0).number == 1


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Arm, int], dict[str, float]]], None]:
    """runs(figures): a run costs nothing and gives what `figures` says of its arm and seed."""

    def by(figures: Callable[[Arm, int], dict[str, float]]) -> None:
        def process(self: Runner, label: str, seed: int) -> Outcome:
            return Outcome("finished", result=figures(self.arms[label], seed))

        monkeypatch.setattr(Runner, "_process", process)

    return by


def noisy(mean: float, seed: int, arm: Arm) -> float:
    return mean + random.Random(f"{seed} {arm.label}").gauss(0.0, 0.0005)


def scored(bpb: float, bytes_per_token: float, **more: float) -> dict[str, float]:
    """Of a run."""
    return {"val_bpb": bpb, "val_loss": bpb * bytes_per_token * math.log(2.0), **more}


def test_the_rule_holds_where_it_does(session: Session, runs: Any) -> None:
    """0.02 nats per token, on every seed; and all seeds are told."""

    def better(arm: Arm, seed: int) -> dict[str, float]:
        nats = noisy(4.98 if "matrix_lr" in arm.layer else 5.0, seed, arm)
        return {"val_bpb": nats / 2.5 / math.log(2.0), "val_loss": nats}

    runs(better)
    text, (one,) = confirmed(session, top=1, seeds=8)
    assert one.rule is True and one.nats == pytest.approx(-0.02, abs=0.001) and not one.notes
    assert confirmed_of(session.optuna_study)[0]["rule"] is True
    assert "nats per token at p < 0.01) holds." in " ".join(text.split())
    assert re.search(rf"^#0 .* {one.nats:+.4f}  ", text, re.M)
    for label in ("baseline", "#0"):
        ran = [*session.folders.home.glob(f"runs/confirm/*/{Arm(label, '', {}, 0).folder}/*/outcome.json")]
        (line,) = (part for part in text.splitlines() if part.startswith(f"  {label}: "))
        assert len(re.findall(r"\d\.\d{4}", line)) == len(ran) >= 4, line


@pytest.mark.parametrize(
    "over", [{"artifact_bytes": 9e7}, {"eval_seconds": 1e4}, {"train_seconds": 1e4}], ids=str
)
def test_the_rule_does_not_hold_over_a_limit(session: Session, runs: Any, over: dict[str, float]) -> None:
    def large(arm: Arm, seed: int) -> dict[str, float]:
        new = "matrix_lr" in arm.layer
        return scored(noisy(2.0 if new else 2.1, seed, arm), 2.5, **(over if new else {}))

    runs(large)
    text, (one,) = confirmed(session, top=1, seeds=4)
    flat = " ".join(text.split())
    assert one.rule_p < 0.01 and not one.sound and one.rule is False
    assert "#0 is over a limit: " in flat and "at p < 0.01) does not hold." in flat
    assert confirmed_of(session.optuna_study)[0]["rule"] is False


@pytest.mark.parametrize("name", ["tokenizer_path", "data_path"])
def test_a_vocabulary_does_not_decide_the_rule(
    session: Session, runs: Any, tmp_path: Path, name: str
) -> None:
    """The reference has longer tokens, and so more nats in each: as good in BPB, it is no worse."""
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"preset": "laptop", name: "data/another"}))
    gap = {"bpb": 0.0}

    def by_text(arm: Arm, seed: int) -> dict[str, float]:
        if arm.label == "other":
            return scored(noisy(2.1, seed, arm), 3.5)
        return scored(noisy(2.1 - gap["bpb"], seed, arm), 2.5)

    runs(by_text)
    text, (one,) = confirmed(session, top=1, seeds=6, against=str(other))
    flat = " ".join(text.split())
    assert one.rule is False and one.rule_p > 0.5 and abs(one.nats) < 0.002
    assert "Tokenizer or data of #0 are not those of other" in flat
    assert (BYTES in flat) is (name == "tokenizer_path"), "bytes are those of each tokenizer"
    assert confirmed_of(session.optuna_study)[0]["notes"] == list(one.notes)
    assert all(note in advice(facts_of(session)) for note in one.notes), "and so says the report"

    gap["bpb"] = 0.05  # then by the bytes of its own tokens
    other.write_text(json.dumps({"preset": "laptop", name: "data/a-third"}))
    _, (one,) = confirmed(session, top=1, seeds=6, against=str(other))
    assert one.rule is True and one.nats == pytest.approx(-0.05 * 2.5 * math.log(2.0), abs=0.002)
    _, (one,) = confirmed(session, top=1, seeds=6)
    assert not one.notes, "the study's own start has its text"


def test_what_is_not_confirmed(session: Session) -> None:
    with pytest.raises(ValueError, match="4 to 64"):
        confirmed(session, seeds=2)
    empty = Session(
        session.study, session.folders, session.url, optuna.create_study(), trainer_of(session.study)
    )
    with pytest.raises(ValueError, match="Only feasible trials"):
        confirmed(empty)
    session.optuna_study.add_trial(trial_of(1.0, 0.03))  # the same run as #0: one contender
    _, found = confirmed(session, top=2, seeds=4)
    assert {one.contender.number for one in found} == {5, 1}


def test_shrinking_takes_back_what_luck_gave() -> None:
    """Of normal truths and noises the best of fifty keeps, on average, what the formula says."""
    rng = np.random.default_rng(2)
    gaps = list[float]()
    raw = list[float]()
    for _ in range(300):
        truth = rng.normal(2.0, 0.01, 50)
        values = truth + rng.normal(0.0, 0.01, 50)
        k = int(values.argmin())
        gaps.append(shrunken(float(values[k]), list(values), 0.01) - float(truth[k]))
        raw.append(float(values[k] - truth[k]))
    assert np.mean(raw) < -0.01 and abs(float(np.mean(gaps))) < 0.003
    assert shrunken(1.0, [1.0, 2.0, 3.0], 0.0) == 1.0
    assert shrunken(1.0, [1.0, 1.0], 0.1) == 1.0 and shrunken(1.0, [1.0, 2.0], math.nan) == 1.0


def test_the_sd_of_a_seed_is_pooled() -> None:
    def runs(*scores: float) -> dict[int, Run]:
        return {i: Run(i, figures={"val_bpb": s}) for i, s in enumerate(scores)}

    found = seed_sd({"a": runs(1.0, 3.0), "b": runs(5.0, 5.0, 5.0), "c": runs(9.0)}, range(3))
    assert found == pytest.approx(math.sqrt(2.0 / 3.0))
    assert math.isnan(seed_sd({"a": runs(1.0)}, range(1)))


def at_end(session: Session, **wanted: int) -> str:
    console = Console(file=io.StringIO(), width=80)
    study = replace(session.study, confirm=Confirm(**wanted))
    confirm_at_end(console, replace(session, study=study), workers=None, trainer=FAKE)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_study_confirms_by_itself_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C stores nothing, and the next one goes on; done, it is done, unless more is asked for."""

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "run_all", stopped)
        at_end(session, top=2, seeds=4)
    assert CONFIRMED not in session.optuna_study.user_attrs
    text = at_end(session, top=2, seeds=4)
    assert "The challenge's rule" in text and "--no-confirm" in text
    assert {*confirmed_of(session.optuna_study)} == {0, 1}
    assert "#0, #1: confirmed before" in at_end(session, top=2, seeds=4)
    assert "runs of this question are here already" in at_end(session, top=2, seeds=5)


def test_a_study_asks_for_enough_seeds_or_is_told_what_few_tell(session: Session, runs: Any) -> None:
    """Four are told to tell next to nothing; who says no number gets sixteen, as the command does."""
    runs(lambda arm, seed: scored(noisy(2.0, seed, arm), 2.5))
    few = at_end(session, top=3, seeds=4)
    said = re.search(r"4 seeds tell a difference of ([\d.]+) standard deviations of a seed with 90 %", few)
    assert (
        said and float(said[1]) == pytest.approx(least_told(4, LEVEL / 6), abs=0.05) and float(said[1]) > 20
    )
    enough = at_end(session, top=3)
    assert "at most 16 seeds each" in enough and Confirm().seeds == 16
    said = re.search(r"16 seeds tell a difference of ([\d.]+) standard deviations", enough)
    assert said and float(said[1]) < 3, "the bar's effect"


def test_a_study_without_a_feasible_trial_ends_without_confirmation(session: Session) -> None:
    empty = replace(session, optuna_study=optuna.create_study())
    assert "Nothing to confirm" in at_end(empty)
    assert CONFIRMED not in empty.optuna_study.user_attrs


@pytest.mark.slow
def test_a_study_is_confirmed_from_the_command_line(tmp_path: Path) -> None:
    study = write_study(tmp_path, "sure")
    study.write_text(f"{study.read_text()}[confirm]\ntop = 2\nseeds = 4\n")
    options = [f"--study={study}", f"--home={tmp_path}", f"--trainer={FAKE}"]

    def quick(*words: object) -> subprocess.CompletedProcess[str]:
        return caddie(*words, FAKE_SECONDS="0", FAKE_NOISE="0.002")

    try:
        ran = quick(*search(study, tmp_path, 4, 2), "--no-confirm")
        assert ran.returncode == 0 and "fresh seeds, as [confirm]" not in ran.stdout, ran.stdout + ran.stderr
        ran = quick(*search(study, tmp_path, 4, 2))  # nothing is left to do but that
        assert "The challenge's rule" in ran.stdout, ran.stdout + ran.stderr
        assert "seeds), search value" in ran.stdout, "the leaderboard stands below it"
        first = ran.stdout
        ran = quick("confirm", "--top=2", "--seeds=4", *options)
        assert ran.returncode == 0, ran.stderr
        assert "runs of this question are here already" in ran.stdout, first + ran.stdout
        board = caddie("best", *options[:2])
        assert "seeds), search value" in board.stdout, board.stdout + board.stderr
        values = sorted((t["value"], t["number"]) for t in read_trials(study, tmp_path))
        best = values[0][1]
        worst = values[-1][1]
        words = [f"--trial={best}", f"--trial={worst}", "--seeds=4"]
        ran = quick("compare", *words, *options)
        assert ran.returncode == 0 and f"#{worst} hurts" in ran.stdout, ran.stdout + ran.stderr
    finally:
        clear(tmp_path)
