"""ablate: what is taken away and added, what its runs say, and in which order they come."""

import io
import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console

from benchmarks.claims import simulate_ablation
from claims.ablation import ablate as module
from claims.ablation.ablate import Options, ablate
from claims.ablation.chain import chain_of
from claims.ablation.changes import Change, added, pairs_that_matter, taken_away, that_fit, wanted
from claims.ablation.family import Ablated, Family
from claims.ablation.greedy import Path as Selected
from claims.ablation.greedy import greedy
from claims.answers import BYTES, Rules
from claims.arms import Arm, arm_of_source
from claims.compare import Asked, no_session
from claims.runs import Run, Runner
from claims.schedule import Clock, Schedule
from claims.sequential import LEVEL
from search.common.paths import Folders
from search.report.effects import Effect, Findings
from search.session.session import Session
from search.study.load import find_study
from search.trainers.process import Outcome
from search.trainers.trainer import trainer_of
from tests.search.fake_studies import FAKE, caddie, write_study

THREE = ("leaky_relu2", "ln_scale", "smear_gate")
Score = Callable[[set[str]], float]


def base_of(tmp_path: Path, *names: str, **more: Any) -> Arm:
    return arm_of_source(str(file_of(tmp_path, *names, **more)), no_session)


def file_of(tmp_path: Path, *names: str, **more: Any) -> Path:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"preset": "laptop", **dict.fromkeys(names, True), **more}))
    return path


@pytest.fixture
def trains(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """trains(score): runs cost nothing and score what `score` says of the techniques on, and noise, which
    goes by the order of seeds: they are others whenever the code is, and one draw in a hundred is unlucky."""
    places: dict[int, int] = {}

    def by(score: Score, *, sd: float = 0.004, tilt: Mapping[str, float] | None = None) -> None:
        def process(self: Runner, label: str, seed: int) -> Outcome:
            arm = self.arms[label]
            on = set(arm.resolved().techniques)
            if math.isnan(mean := score(on)):
                return Outcome("failed", reason="diverged: train_loss is nan at step 7")
            place = places.setdefault(seed, len(places))
            bpb = mean + random.Random(f"{place} {sorted(on)}").gauss(0.0, sd)
            ends = {name: bpb + d for name, d in (tilt or {}).items() if name in on}
            chain = [["weights", bpb + 0.02], ["packed", bpb], *ends.items()]
            result = {"val_bpb": [*ends.values(), bpb][0], "bpb_chain": [list(link) for link in chain]}
            costs = {
                "train_seconds": 10.0,
                "eval_seconds": 1.0 + len(on),
                "artifact_bytes": 4e5 + 100 * len(on),
            }
            return Outcome("finished", result={**result, **costs, "true_seconds": 11.0})

        monkeypatch.setattr(Runner, "_process", process)

    return by


def run(tmp_path: Path, *names: str, **more: Any) -> tuple[str, Ablated]:
    """An ablation of the laptop preset with these techniques."""
    console = Console(file=io.StringIO(), width=more.pop("width", 80))
    seeds = more.pop("seeds", 12)
    base = more.pop("base", "") or str(file_of(tmp_path, *names))
    asked = Asked(base=base, home=tmp_path, trainer=FAKE, seeds=seeds, workers=1)
    told = ablate(console, asked, Options(**more))
    return console.file.getvalue(), told  # type: ignore[attr-defined]


def answer_in(tmp_path: Path) -> dict[str, Any]:
    (path,) = tmp_path.glob("runs/ablate/*/answer.json")
    return json.loads(path.read_text())


def effects_of(effects: Mapping[str, float]) -> Score:
    return lambda on: 2.0 + sum(effects.get(name, 0.0) for name in on)


def test_each_technique_is_told_by_what_it_does(tmp_path: Path, trains: Callable[..., None]) -> None:
    trains(effects_of({"leaky_relu2": -0.1, "smear_gate": 0.05, "xsa": -0.2}))
    text, told = run(tmp_path, *THREE, add="xsa", pairs=0)
    found = {e.change.technique: e for e in told.effects}
    assert [found[n].verdict for n in (*THREE, "xsa")] == ["helps", "no difference", "hurts", "helps"]
    assert found["leaky_relu2"].mean == pytest.approx(-0.1, abs=0.01)
    assert found["xsa"].mean == pytest.approx(-0.2, abs=0.01)
    assert all(e.low <= e.mean <= e.high for e in told.effects)
    assert (found["leaky_relu2"].seconds, found["leaky_relu2"].bytes) == (1.0, 100.0)  # with less without
    assert (found["xsa"].seconds, found["xsa"].bytes) == (1.0, 100.0)
    assert found["leaky_relu2"].answer.verdict.pairs < 12  # clear ones stop
    assert max(len(line) for line in text.splitlines() if not line.startswith("plan")) <= 80, text
    flat = " ".join(text.split())
    assert "Helps: leaky_relu2, + xsa." in flat and "Hurts: smear_gate." in flat

    facts = answer_in(tmp_path)
    rows = {e["technique"]: e for e in facts["effects"]}
    assert {"technique", "change", "mean", "low", "high", "p", "verdict", "seconds", "bytes"} <= set(
        rows["xsa"]
    )
    assert [rows[n]["change"] for n in ("ln_scale", "xsa")] == ["taken away", "added"]
    assert rows["smear_gate"]["mean"] > 0.0 > rows["leaky_relu2"]["mean"] and rows["smear_gate"]["p"] < LEVEL
    assert [x["stage"] for x in facts["chain"]] == ["weights", "packed"]
    assert facts["chain"][0]["mean"] == pytest.approx(facts["chain"][1]["mean"] + 0.02)
    assert facts["study"] is None and facts["trial"] is None and len(facts["seeds"]) >= 4
    assert facts["configuration"] == {"preset": "laptop", **dict.fromkeys(THREE, True)}


def test_tokenizers_that_differ_are_told(tmp_path: Path, trains: Callable[..., None]) -> None:
    trains(effects_of({}))
    other = tmp_path / "theirs.json"
    other.write_text(json.dumps({"preset": "laptop", "tokenizer_path": "data/other.model"}))
    text, _ = run(tmp_path, "smear_gate", seeds=4, pairs=0, against=str(other))
    assert BYTES in " ".join(text.split()) and BYTES in answer_in(tmp_path)["sentences"]
    text, _ = run(tmp_path, "smear_gate", seeds=4, pairs=0)
    assert "SentencePiece" not in text


def test_what_needs_a_technique_goes_with_it(tmp_path: Path, trains: Callable[..., None]) -> None:
    base = base_of(tmp_path, "gptq", "awq_lite", **{"awq_lite.group": 16})
    changes = {c.technique: c for c in taken_away(base)}
    assert changes["gptq"].also == ("awq_lite",) and changes["awq_lite"].also == ()
    left = changes["gptq"].arm.resolved()
    assert not {"gptq", "awq_lite"} & set(left.techniques)
    assert set(changes["awq_lite"].arm.resolved().techniques) == {"gptq"}
    trains(effects_of({"awq_lite": -0.1}))
    text, told = run(tmp_path, "gptq", "awq_lite")
    assert "gptq is needed by awq_lite: they go with it" in " ".join(text.split())
    assert not told.interactions  # neither can be alone: no pair
    assert {e.change.name: e.verdict for e in told.effects}["gptq with awq_lite"] == "helps"


def test_a_setting_that_needs_a_technique_goes_to_its_default(tmp_path: Path) -> None:
    for preset in ("pr1019", "pr1855"):
        base = arm_of_source(preset, no_session)
        for change in taken_away(base):
            after = change.arm.resolved()
            gone = {change.technique, *change.also}
            assert set(base.resolved().techniques) - gone == set(after.techniques)
            for name, technique in after.techniques.items():
                for field, other in technique.setting_requires.items():
                    default = type(technique).Config.__dataclass_fields__[field].default
                    assert other in after.techniques or getattr(technique.config, field) == default, name


def test_what_is_added_brings_what_it_needs(tmp_path: Path) -> None:
    base = base_of(tmp_path, "leaky_relu2")
    (change,) = added(base, ["awq_lite"])
    assert change.also == ("gptq",) and {"awq_lite", "gptq"} < set(change.arm.resolved().techniques)
    (xsa,) = added(base, ["xsa"])
    assert xsa.arm.label == "with xsa at last_n=1"  # its default asks for more layers than there are
    assert "xsa" in that_fit(base) and "leaky_relu2" not in that_fit(base)
    assert "swa" not in that_fit(base_of(tmp_path, "ema"))  # the slot is taken
    with pytest.raises(ValueError, match="but leaky_relu2 is on"):
        added(base, ["leaky_relu2"])
    with pytest.raises(ValueError, match="smear_gate"):
        added(base, ["smear_gat"])
    (warm,) = added(base_of(tmp_path, warmdown_iters=30), ["warmdown"])  # which reads its own setting instead
    assert "warmdown_iters" not in warm.arm.layer


def test_the_words_of_add(tmp_path: Path) -> None:
    base = base_of(tmp_path, "leaky_relu2")
    likely = [
        Effect(n, m, m - 0.1, m + 0.1, b, 9)
        for n, m, b in (
            ("smear_gate", -0.1, 0.99),
            ("ln_scale", -0.2, 0.95),
            ("xsa", -0.3, 0.5),
            ("gptq.x = y", -0.9, 1.0),
            ("leaky_relu2", -0.9, 1.0),
        )
    ]
    found = Findings(30, 0.01, tuple(likely), (), ())
    assert wanted(base, "", found) == ["ln_scale", "smear_gate"] and wanted(base, "1", found) == ["ln_scale"]
    assert wanted(base, "none", found) == [] and wanted(base, "", None) == []
    assert wanted(base, "xsa, ema", None) == ["xsa", "ema"] and len(wanted(base, "all", None)) > 40


def test_two_that_do_the_same_overlap(tmp_path: Path, trains: Callable[..., None]) -> None:
    trains(
        lambda on: (
            2.0 - 0.02 * len(on & {"smear_gate", "ln_scale"}) - 0.1 * bool(on & {"smear_gate", "ln_scale"})
        )
    )
    text, told = run(tmp_path, *THREE, seeds=20)
    (one,) = [i for i in told.interactions if i.pair.name == "ln_scale × smear_gate"]
    assert one.word == "overlap" and one.verdict.mean == pytest.approx(0.1, abs=0.01)
    assert one.both == pytest.approx(-0.14, abs=0.01) and one.sum == pytest.approx(-0.04, abs=0.01)
    assert max(len(line) for line in text.splitlines() if not line.startswith("plan")) <= 80, text
    (fact,) = [p for p in answer_in(tmp_path)["pairs"] if p["verdict"] == "overlap"]
    assert fact["techniques"] == ["ln_scale", "smear_gate"] and fact["p"] < LEVEL


def test_pairs_are_those_of_the_study_and_of_large_effects(tmp_path: Path) -> None:
    base = base_of(tmp_path, *THREE, "xsa", **{"xsa.last_n": 1})
    changes = taken_away(base)
    clear = {"leaky_relu2": -0.1, "smear_gate": 0.05, "ln_scale": 0.01}
    found = pairs_that_matter(
        base, changes, clear, [frozenset(("xsa", "ln_scale")), frozenset(("a", "b"))], 3
    )
    assert [p.name for p in found] == ["ln_scale × xsa", "leaky_relu2 × smear_gate", "leaky_relu2 × ln_scale"]
    assert not pairs_that_matter(base, changes, {"xsa": -0.1}, [], 3)  # one alone is none
    assert set(found[0].arm.resolved().techniques) == {"leaky_relu2", "smear_gate"}


def test_a_tilt_over_a_worse_model_is_told(tmp_path: Path, trains: Callable[..., None]) -> None:
    trains(effects_of({"smear_gate": 0.1}), tilt={"sliding_window": -0.3})
    text, told = run(tmp_path, "smear_gate", "sliding_window", seeds=8)
    flat = " ".join(text.split())
    assert told.tilt and told.tilt.hides_a_worse_model and told.tilt.sure
    assert (
        "A better score over a worse model: mine's score is 0." in flat and "sliding_window's alone." in flat
    )
    assert [x.stage for x in chain_of(told.results, "mine", told.family.seeds)] == [
        "weights",
        "packed",
        "sliding_window",
    ]
    facts = answer_in(tmp_path)["reference"]
    assert facts["label"] == "laptop" and (facts["score"]["verdict"], facts["model"]["verdict"]) == (
        "helps",
        "hurts",
    )
    trains(effects_of({"smear_gate": -0.1}), tilt={"sliding_window": -0.3})
    text, told = run(
        tmp_path / "b", "smear_gate", "sliding_window", seeds=8, base=str(tmp_path / "mine.json")
    )
    assert told.tilt and not told.tilt.hides_a_worse_model and "A better score over" not in text


def test_a_reference_that_is_an_arm_runs_once(tmp_path: Path, trains: Callable[..., None]) -> None:
    trains(effects_of({}), tilt={"sliding_window": -0.3})
    _, told = run(tmp_path, "sliding_window", seeds=4)
    assert [arm.label for arm in told.family.arms] == ["mine", "without sliding_window"]
    assert told.tilt and told.tilt.reference == "laptop"


def test_one_that_it_cannot_be_without_fails(tmp_path: Path, trains: Callable[..., None]) -> None:
    trains(lambda on: 2.0 if "ln_scale" in on else math.nan)
    text, told = run(tmp_path, "ln_scale", "smear_gate")
    assert {e.change.technique: e.verdict for e in told.effects}["ln_scale"] == "fails"
    assert "without ln_scale: 2 of 2 runs have no score (diverged" in " ".join(text.split())


def test_the_time_ends_it_and_the_same_command_goes_on(tmp_path: Path, trains: Callable[..., None]) -> None:
    trains(effects_of({"smear_gate": -0.1}))
    text, told = run(
        tmp_path, "smear_gate", minutes=0.1
    )  # six seconds: no run of eleven fits behind the first
    assert "Stopped for the time (0.1 minutes)" in text and "no evidence" in text
    assert sum(map(len, told.results.values())) == 1
    text, told = run(tmp_path, "smear_gate")
    assert "1 runs of this question are here already" in text and told.effects[0].verdict == "helps"


def test_who_is_nearly_decided_and_cheap_runs_first() -> None:
    def runs(count: int, seconds: float) -> dict[int, Run]:
        return {n: Run(n, "", {"val_bpb": 1.0, "true_seconds": seconds}) for n in range(count)}

    results = {"base": runs(4, 10.0), "near": runs(4, 10.0), "far": runs(4, 10.0), "cheap": runs(4, 1.0)}
    more = {"near": (4, 2), "far": (4, 9), "cheap": (4, 9)}
    tasks = [(4, ("base",)), (4, ("near",)), (4, ("far",)), (4, ("cheap",))]
    pick = Schedule("base", range(20), lambda _: more, Clock(1e9))
    assert pick(results, tasks, set()) == (4, ("base",))  # nobody has a pair without it
    tasks[0] = (6, ("base",))
    assert pick(results, tasks, set()) == (4, ("cheap",))
    del more["cheap"], tasks[3]
    assert pick(results, tasks, set()) == (4, ("near",))
    more["near"] = (4, 30)  # beyond these seeds
    assert pick(results, tasks, set()) == (4, ("far",))
    assert Schedule("base", range(20), lambda _: more, Clock(0.5))(results, tasks, set()) is None
    assert "(1 minute)" in Clock(60.0).sentence and "(1.5 minutes)" in Clock(90.0).sentence


@pytest.mark.parametrize(
    ("count", "pairs", "reference"), [(1, True, False), (5, True, True), (12, False, True)]
)
def test_the_shares_of_all_questions_are_the_level(
    tmp_path: Path, count: int, pairs: bool, reference: bool
) -> None:
    base = base_of(tmp_path)
    changes = [Change(str(n), "taken away", Arm(str(n), "", {}, 0)) for n in range(count)]
    family = Family(base, changes, base if reference else None, "", Rules(), pairs=pairs)
    others = family.possible + 2 * reference
    assert family.single.level * count + family.others.level * others <= LEVEL * (1 + 1e-9)
    assert family.single.level * count >= LEVEL / 2


def test_a_wrong_word_is_rare_and_an_effect_of_three_sd_is_told() -> None:
    """Whatever pairs the same seeds chose."""
    null = simulate_ablation(5, effect=0.0, seeds=16, studies=4000)
    assert null.any_word < LEVEL + 3 * math.sqrt(LEVEL / 4000)
    assert simulate_ablation(3, effect=3.0, seeds=16, studies=500).told >= 0.9
    shared = simulate_ablation(3, effect=3.0, seeds=16, studies=500, shared=0.5)
    assert shared.told >= 0.99 and shared.any_word < 0.03  # the true effects are none of its words


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes techniques away or adds some"):
        run(tmp_path)
    with pytest.raises(ValueError, match=r"not on in mine. On: ln_scale"):
        run(tmp_path, "ln_scale", out="smear_gate")
    with pytest.raises(ValueError, match="Name one"):
        ablate(Console(file=io.StringIO()), Asked(home=tmp_path), Options())
    with pytest.raises(ValueError, match="4 to 64"):
        run(tmp_path, "ln_scale", seeds=2)
    clash = file_of(tmp_path, "ln_scale").rename(tmp_path / "without ln_scale.json")
    with pytest.raises(ValueError, match="two are 'without ln_scale'"):
        run(tmp_path, base=str(clash))


def selected(tmp_path: Path, candidates: str, **more: Any) -> tuple[str, Selected]:
    console = Console(file=io.StringIO(), width=80)
    asked = Asked(base="laptop", home=tmp_path, trainer=FAKE, workers=1, seeds=8)
    path = greedy(console, asked, candidates=candidates, **more)
    return console.file.getvalue(), path  # type: ignore[attr-defined]


def test_greedy_keeps_what_helps_until_nothing_does(tmp_path: Path, trains: Callable[..., None]) -> None:
    """ln_scale helps only where smear_gate is on."""
    effects = {"smear_gate": -0.1, "leaky_relu2": -0.05, "ema": 0.05}
    trains(lambda on: effects_of(effects)(on) - 0.2 * ({"ln_scale", "smear_gate"} <= on))
    text, path = selected(tmp_path, "leaky_relu2,smear_gate,ln_scale,ema")
    assert [c.technique for c, _, _ in path.steps] == ["smear_gate", "ln_scale", "leaky_relu2"]
    assert (
        path.claim
        and path.claim.kind == "helps"
        and path.claim.verdict.mean == pytest.approx(-0.35, abs=0.01)
    )
    assert path.end.label == "laptop + smear_gate + ln_scale + leaky_relu2"
    assert max(len(line) for line in text.splitlines() if not line.startswith("plan")) <= 80, text
    assert "Last round: ema hurts." in text
    plans = [json.loads(p.read_text())["seeds"] for p in tmp_path.glob("runs/greedy/*/plan.json")]
    assert (
        len(plans) == 5 and len({seed for seeds in plans for seed in seeds}) == 5 * 64
    )  # nothing chosen twice
    (kept,) = tmp_path.glob("runs/greedy/*/answer.json")
    facts = json.loads(kept.read_text())
    assert facts["configuration"]["ln_scale"] and facts["path"][0]["technique"] == "smear_gate"
    again, _ = selected(tmp_path, "leaky_relu2,smear_gate,ln_scale,ema")
    assert "runs of this question are here already" in again


def test_greedy_that_finds_nothing_says_so(tmp_path: Path, trains: Callable[..., None]) -> None:
    trains(effects_of({"ln_scale": 0.1}), sd=0.001)
    text, path = selected(tmp_path, "ln_scale,smear_gate")
    assert not path.steps and path.claim is None
    flat = " ".join(text.split())
    assert "Last round: ln_scale hurts, smear_gate makes no difference." in flat
    assert "Nothing that was tried clearly helps laptop." in flat
    with pytest.raises(ValueError, match="needs candidates"):
        selected(tmp_path, "")
    with pytest.raises(ValueError, match="smear_gate"):
        selected(tmp_path, "smear_gat")


def test_a_trial_is_held_against_its_study(
    tmp_path: Path, trains: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reference is the study's start; its study names what is added; none of its seeds is fresh."""
    stored = optuna.create_study()
    config = {"preset": "laptop", "smear_gate": True, "sliding_window": True, "seed": 1337}
    stored.add_trial(create_trial(value=2.0, user_attrs={"config": config}, state=TrialState.COMPLETE))
    study = find_study(write_study(tmp_path, "told"))
    session = Session(study, Folders(tmp_path, "told"), "sqlite://", stored, trainer_of(study))
    likely = (Effect("ln_scale", -0.1, -0.2, -0.01, 0.99, 9),)
    monkeypatch.setattr(module, "findings_of", lambda _: Findings(30, 0.01, likely, (), ()))
    trains(effects_of({"smear_gate": 0.1}), tilt={"sliding_window": -0.3})
    asked = Asked(trials=(0,), home=tmp_path, trainer=FAKE, workers=1, seeds=6, session=lambda: session)
    told = ablate(Console(file=io.StringIO()), asked, Options())
    assert [c.technique for c in told.family.changes] == ["sliding_window", "smear_gate", "ln_scale"]
    assert told.tilt and told.tilt.reference == "baseline" and told.tilt.hides_a_worse_model
    facts = answer_in(tmp_path)
    assert (facts["study"], facts["trial"], facts["label"]) == ("told", 0, "#0")
    assert 1337 not in facts["seeds"]


@pytest.mark.slow
def test_a_configuration_is_taken_apart_from_the_command_line(tmp_path: Path) -> None:
    words = ["ablate", f"--base={file_of(tmp_path, 'smear_gate', 'ln_scale')}", f"--home={tmp_path}"]
    words += [f"--trainer={FAKE}", "--seeds=4", "--workers=2", "--json"]
    ran = caddie(*words, FAKE_SECONDS="0", FAKE_NOISE="0.001")
    assert ran.returncode == 0, ran.stderr
    tables = json.loads(ran.stdout)
    assert [row["technique"] for row in tables[0]["rows"]] == ["- ln_scale", "- smear_gate"]
    assert "no difference" in {row["verdict"] for row in tables[0]["rows"]}
    again = caddie(*words, FAKE_SECONDS="0", FAKE_NOISE="0.001")
    assert again.stdout == ran.stdout and "runs of this question are here already" in again.stderr
    both = caddie(*words, "--preset=laptop")
    assert both.returncode == 2 and "error: One configuration is taken apart" in both.stderr
