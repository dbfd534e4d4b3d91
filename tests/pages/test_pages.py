"""The report of a study: what it says, in three forms, and how its page looks in a browser."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import _CachedStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna_dashboard._inmemory_cache import _CachedExtraStudyProperty
from rich.console import Console

from pages import figures
from pages.claimed import ablation_of
from pages.facts import FEASIBLE, PRUNED, STATES, all_effects, facts_of, pareto
from pages.html import BARS, measured, page_of, used_text
from pages.live import Live
from pages.report import FORMS, json_of, markdown_of, write_report
from pages.words import group_rows
from search.report.dashboard import FeasibleStorage, SeenOnce, ShownStorage
from search.report.effects import Effect
from search.report.leaderboard import print_leaderboard
from search.report.rows import beliefs_of_study, confirmed_of, ranked
from search.report.studies import print_diff
from search.report.trial import print_trial
from search.session.session import Session
from search.study.foreign import Foreign
from search.study.model import Price
from tests.pages.made_up import made_up_answers, made_up_session, made_up_trials

CHROMIUM = "/usr/bin/chromium"
DRIVER = "/usr/bin/chromedriver"
LOOK = """
const wide = document.documentElement.scrollWidth, room = document.documentElement.clientWidth;
const plots = [...document.querySelectorAll('.figure')].map(f => f.querySelectorAll('svg.main-svg').length);
const over = [...document.querySelectorAll('section, header, .figure, .tile, pre, .wide, .below div')]
    .filter(e => e.getBoundingClientRect().right > room + 1 || e.scrollWidth > e.clientWidth + 1)
    .map(e => `${e.tagName} ${e.className}: ${e.innerText.slice(0, 40)}`);
const text = document.createRange();
const lines = e => { text.selectNodeContents(e); return text.getClientRects().length; };
const words = [...document.querySelectorAll('td')].filter(e => !/\\s|\\w-/.test(e.innerText));
const tall = [...document.querySelectorAll('.upper td')].filter(e => e.offsetHeight > 40);
const broken = [...words.filter(e => lines(e) > 1), ...tall].map(e => e.innerText);
return {wide, room, plots, over, broken, text: document.body.innerText};
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    session = made_up_session(tmp_path_factory.mktemp("told"), 80)
    best = facts_of(session).best[0]
    made_up_answers(session.folders.home, best)
    return facts_of(session)


def drawn(facts: Any) -> dict[str, figures.Figure | None]:
    found = {
        "progress": figures.progress(facts),
        "curves": figures.curves(facts),
        "groups": figures.groups(facts),
        "chain": figures.chain(facts),
        "ablation": figures.ablation(facts),
        "compared": figures.comparisons(facts),
        "reasons": figures.reasons(facts),
        "timeline": figures.timeline(facts),
    }
    found |= {f"against {limit.figure}": figures.against(facts, limit) for limit in facts.limits}
    effects = facts.effects.techniques if facts.effects else ()
    return found | {"effects": figures.forest(effects, "techniques")}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("xsa.last_n 2 → 3", "xsa.last_n 2 → 3"),
        (
            "muon_details.adam_weight_decay 0.09011 → 0.055",
            "muon_details.adam_weight_de… 0.09011 → 0.055",
        ),
        ("a" * 60, "a" * 43 + "…"),
        ("a " + "b" * 60, "a " + "b" * 41 + "…"),
        ("a<b", "a&lt;b"),
    ],
)
def test_a_long_row_keeps_what_its_setting_went_to(name: str, shown: str) -> None:
    assert figures.short_name(name) == shown


def test_facts_agree_with_the_leaderboard(tmp_path: Path) -> None:
    session = made_up_session(tmp_path, 60)
    facts = facts_of(session)
    trials = session.optuna_study.trials
    study = session.optuna_study
    good, bad = ranked(trials, confirmed_of(study), beliefs_of_study(study, trials))
    counts = facts.counts()
    assert facts.best == tuple(t.number for t in good)
    assert counts[FEASIBLE] == len(good) and counts["over a limit"] == len(bad)
    assert sum(counts.values()) == len(trials) and set(counts) <= {*STATES}
    front = pareto(facts.trials, "artifact_bytes")
    for trial in front:  # nobody is better in both
        rivals = [t for t in facts.trials if t.state == FEASIBLE and t.number != trial.number]
        assert not [
            t
            for t in rivals
            if t.bpb is not None
            and trial.bpb is not None
            and t.bpb < trial.bpb
            and t.figures["artifact_bytes"] <= trial.figures["artifact_bytes"]
        ]


def test_every_figure_is_one_that_plotly_knows(told: Any) -> None:
    found = drawn(told)
    assert all(found.values()), {name: f is not None for name, f in found.items()}
    for figure in found.values():
        assert figure is not None
        go.Figure({"data": figure["data"], "layout": figure["layout"]})  # raises for an unknown property


def test_what_a_trial_says_cannot_write_into_the_page(told: Any) -> None:
    page = page_of(told)
    assert "<b>unseen</b>" not in page and "&lt;b&gt;unseen&lt;/b&gt;" in page
    assert len(re.findall(r"<script", page.replace(_plotly(page), ""))) == 2


def own(page: str) -> str:
    """Without Plotly's script."""
    return page.replace(_plotly(page), "")


def _plotly(page: str) -> str:
    """The longest script: Plotly's own."""
    return max(re.findall(r"<script>(.*?)</script>", page, flags=re.S), key=len)


def test_the_page_asks_no_network(told: Any) -> None:
    page = page_of(told)
    own = page.replace(_plotly(page), "")
    assert not re.findall(r"https?://|<link|<img|@import|src=", own)


def test_markdown_and_json_say_the_same(told: Any) -> None:
    text = markdown_of(told)
    best = told.named(told.best[0])
    assert f"Best: trial #{best.number}" in text and f"{best.bpb:.4f}" in text
    assert "One bar a trial" in page_of(told) and "One bar" not in text, "it has no figures"
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert widths and min(widths) >= 3
    facts: Mapping[str, Any] = json.loads(json_of(told), parse_constant=pytest.fail)
    assert facts["best"][0] == best.number and len(facts["trials"]) == 80
    assert facts["effects"]["techniques"][0]["name"]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_study_that_has_hardly_begun(tmp_path: Path, count: int) -> None:
    session = made_up_session(tmp_path, count, confirmed=False)
    facts = facts_of(session)
    page = page_of(facts)
    text = markdown_of(facts)
    assert "Effects are told from at least" in page and "Effects are told from at least" in text
    assert "fresh seeds" not in text and "fresh seeds</th>" not in page, "none ran"
    assert ("No trial kept every limit yet." in page) == (not facts.best)
    json.loads(json_of(facts))


def test_an_ablation_ends_where_it_was_measured(told: Any) -> None:
    figure = figures.ablation(told)
    assert figure is not None and told.ablation.trial == told.best[0]
    bars = figure["data"][0]
    assert bars["y"] == ["without them", "bigram_hash", "xsa", "ema", f"#{told.best[0]}"], "the largest first"
    ends = [low + step for low, step in zip(bars["base"], bars["x"], strict=True)]
    assert bars["base"][1:-1] == pytest.approx(ends[:-2]), "each begins where the one above ends"
    assert ends[-2:] == pytest.approx([2.55, 2.55]) and bars["text"][-1] == "2.5500"
    verdicts = {one.name: one.verdict for one in told.ablation.away}
    grey = [
        y for y, colour in zip(bars["y"], bars["marker"]["color"], strict=True) if colour == figures.QUIET
    ]
    assert grey == [y for y in bars["y"][1:-1] if verdicts[y] not in ("helps", "hurts")], "what is not told"
    page = page_of(told).replace(_plotly(page_of(told)), "")
    for text in (page, markdown_of(told)):
        assert all(
            word in text for word in ("What was confirmed", "xsa helps", "swa fails.", "A tilt.", "reinforce")
        )
        assert "Ablation of #" in text and "no evidence" in text and "2.5900" in text
    assert "<i>very</i>" not in page


def test_an_effect_is_of_all_that_went(told: Any) -> None:
    """As the terminal tells it; and over the seeds that it has."""
    facts = {"technique": "gptq", "also": ["awq_lite", "sensitivity_bits"], "change": "taken away"}
    facts |= {"mean": -0.1, "low": -0.12, "high": -0.08, "verdict": "helps", "pairs": 4}
    alone = facts | {"technique": "xsa", "also": [], "pairs": 6}
    taken = ablation_of(
        {"trial": 1, "seeds": [1, 2, 3, 4, 5, 6], "effects": [facts, alone], "score": {"mean": 2.5}}
    )
    told = dataclasses.replace(told, ablation=taken)
    figure = figures.ablation(told)
    assert figure is not None and "gptq with awq_lite and sensitivity_bits" in figure["data"][0]["y"]
    for text in (own(page_of(told)), markdown_of(told)):
        assert "gptq with awq_lite and sensitivity_bits" in text
        assert "6 seeds, each change on 4 to 6 of them" in text and "6 seeds each" not in text
    same = ablation_of({"trial": 1, "seeds": [1, 2], "effects": [alone | {"pairs": 2}], "pairs": None})
    older = ablation_of({"trial": 1, "seeds": [1, 2], "effects": [{"technique": "xsa", "verdict": "helps"}]})
    assert same.seeds_text == older.seeds_text == "2 seeds each"
    fewer = ablation_of({"trial": 1, "seeds": [1, 2], "effects": [alone | {"pairs": 1}]})
    assert fewer.seeds_text == "2 seeds, each change on 1 of them"


def test_what_is_over_a_limit_keeps_no_rule(tmp_path: Path) -> None:
    session = made_up_session(tmp_path, 40)
    asked = session.optuna_study.user_attrs["confirmed"]
    first, second, third = asked
    rules = {first: {"rule": True}, second: {"rule": True, "sound": False}, third: {"rule": False}}
    session.optuna_study.set_user_attr("confirmed", {n: facts | rules[n] for n, facts in asked.items()})
    facts = facts_of(session)
    heads, rows = group_rows(facts)
    said = {row[0]: row[heads.index("challenge's rule")] for row in rows}
    assert said == {f"#{first}": "holds", f"#{second}": "does not hold", f"#{third}": "does not hold"}
    for text in (own(page_of(facts)), markdown_of(facts)):
        assert "(8 seeds)!" in text and "! behind fresh seeds = " in text
    sound = made_up_session(tmp_path, 40)
    assert "! behind" not in page_of(facts_of(sound)) + markdown_of(facts_of(sound))


def section_of(page: str, title: str) -> str:
    return next((part for part in own(page).split("<section") if f"<h2>{title}" in part), "")


def test_each_part_of_the_page_has_its_figures(told: Any) -> None:
    page = page_of(told)
    counts = {"Progress": 1, "Leaderboard": 0, "Budgets": len(told.limits), "Learning curves": 1}
    counts |= {"What was confirmed": 2, "Ablation of #": 1, "What broke": 1, "Time": 1}
    counts |= {"Where the best got its BPB": 1, "Audit": 0}
    counts["Effects"] = sum(map(bool, all_effects(told.effects).values()))
    found = {title: section_of(page, title).count('class="figure"') for title in counts}
    assert found == counts and counts["Effects"] >= 2
    assert sum(counts.values()) == own(page).count('class="figure"')


def test_a_pair_that_clashes_is_shown(told: Any) -> None:
    clash = Effect("xsa × ema", 0.06, 0.03, 0.09, 0.0, 40)
    clashes = dataclasses.replace(told, effects=dataclasses.replace(told.effects, pairs=(clash,)))
    found = section_of(page_of(clashes), "Effects")
    assert "pair, beyond the sum of both" in found and "No pair does" not in found
    forest = figures.all_figures(clashes)["Effects: pair, beyond the sum of both"]["data"]
    assert [trace["name"] for trace in forest] == ["hurts"] and forest[0]["y"] == ["xsa × ema"]
    assert "| xsa × ema | +0.0600 | +0.0300 to +0.0900 | 40 | hurts |" in markdown_of(clashes)
    none = dataclasses.replace(told, effects=dataclasses.replace(told.effects, pairs=()))
    assert "No pair does" in section_of(page_of(none), "Effects")


def test_what_the_best_use_of_each_limit(told: Any) -> None:
    """Bars with their shares, and what is left as a number; over a limit it is said."""
    budgets = section_of(page_of(told), "Budgets")
    assert budgets.count('class="bar"') == len(told.limits) * BARS
    best = told.named(told.best[0])
    for limit in told.limits:
        used = best.figures[limit.figure]
        assert f"{used / limit.most:.0%}; {measured(limit.most - used, limit.unit)} left" in budgets
        assert f'style="width:{100 * used / limit.most:.1f}%"' in budgets
    assert used_text(told.limits[0], told.limits[0].most + 1000).endswith("; 1,000 over")


def test_legality_and_the_chain_are_told_in_each_form(told: Any) -> None:
    counts = Counter(trial.legality for trial in told.trials)
    assert len(counts) == 2
    audit = section_of(page_of(told), "Audit")
    best = told.named(told.best[0])
    chain = f"weights {best.chain[0][1]:.4f}, "
    text = markdown_of(told)
    for verdict, count in counts.items():
        assert f'<td>{verdict}</td><td class="number">{count}</td>' in audit
        assert f"| {verdict} | {count} |" in text
    assert f"{best.legality} · " in section_of(page_of(told), "Leaderboard")
    assert f"| {best.legality} | {', '.join(best.techniques)[:9]}" in text
    assert f"On the tokens of a report: {chain}" in text and f"{best.chain[-1][1]:.4f}" in text


def test_a_limit_stands_in_its_figure_with_the_pareto_front(told: Any) -> None:
    for limit in told.limits:
        figure = figures.against(told, limit)
        assert figure is not None and figure["layout"]["shapes"][0]["x0"] == limit.most
        assert figure["layout"]["shapes"][0]["x1"] == limit.most
        front = pareto(told.trials, limit.figure)
        trace = next((t for t in figure["data"] if t["name"] == "Pareto front"), None)
        if len(front) > 1:
            assert trace is not None
            assert trace["x"] == [t.figures[limit.figure] for t in front]
            assert trace["y"] == [t.bpb for t in front]
    assert len(pareto(told.trials, "artifact_bytes")) > 1


def test_curves_end_where_their_trials_were_given_up(told: Any) -> None:
    figure = figures.curves(told)
    assert figure is not None
    ends = next(t for t in figure["data"] if t["name"] == "given up here")
    stopped = [t.curve[-1] for t in told.trials if t.state == PRUNED]
    assert stopped and list(zip(ends["x"], ends["y"], strict=True)) == stopped


@pytest.mark.parametrize("kind", ["compare", "ablate"])
@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"answers": [1], "study": "made_up", "effects": 2, "seeds": 3}']
)
def test_an_answer_that_cannot_be_read_is_left_out(tmp_path: Path, kind: str, text: str) -> None:
    session = made_up_session(tmp_path, 3, confirmed=False)
    path = tmp_path / "runs" / kind / "abc" / "answer.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    facts = facts_of(session)
    assert not facts.compared and facts.ablation is None
    assert "What was confirmed" not in page_of(facts) and "Ablation" not in markdown_of(facts)


def test_every_trial_stands_on_the_figure_of_progress(told: Any) -> None:
    """Quantiles with the start among the values are others than without it: one far off went missing."""
    near = (264, 265, 267, 269, 271, 273, 273, 279, 282, 283, 284, 284, 289, 293, 294, 297, 299, 304, 324)
    values = [*(v / 100 for v in near), 4.32]
    trials = [replace(t, state=FEASIBLE, bpb=v) for t, v in zip(told.trials, values, strict=False)]
    figure = figures.progress(replace(told, trials=tuple(trials), baseline={"val_bpb": 2.8377}))
    assert figure is not None
    low, top = figure["layout"]["yaxis"]["range"]
    dots = [y for one in figure["data"] if one["mode"] == "markers" for y in one["y"]]
    assert len(dots) == len(values) and all(low < y < top for y in dots)


def test_counts_of_trials_are_told_at_whole_numbers(told: Any) -> None:
    """An axis of four trials had the ticks 0 1 1 2 2 3 3 4 4."""
    figure = figures.reasons(told)
    assert figure is not None and isinstance(figure["layout"]["xaxis"]["dtick"], int)


def test_the_newest_ablation_of_the_best_is_told(tmp_path: Path) -> None:
    session = made_up_session(tmp_path, 30)
    best = facts_of(session).best[0]
    made_up_answers(tmp_path, best)
    whole = json.loads((tmp_path / "runs" / "ablate" / "abc" / "answer.json").read_text())
    for name, changes in (("other", {"trial": best + 1}), ("elsewhere", {"study": "another"})):
        path = tmp_path / "runs" / "ablate" / name / "answer.json"
        path.parent.mkdir()
        path.write_text(json.dumps(whole | changes))
    found = facts_of(session).ablation
    assert found is not None and found.trial == best


def test_the_live_report_is_made_again_when_something_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = made_up_session(tmp_path, 30)
    monkeypatch.setattr("pages.live.RESTS", 0.0)
    live = Live(session, session.optuna_study)
    assert "being read" in live.note()
    first = live.page()
    assert live.page() is first, "nothing changed"
    session.optuna_study.add_trial(made_up_trials(31)[30])
    assert live.page() is not first and "31 trials" in live.note()
    made_up_answers(tmp_path, facts_of(session).best[0])
    assert b"Ablation of #" in live.page() and b"Ablation of #" not in first
    plots = live.plots()
    assert {name.split(":")[2] for name in plots} >= {"Progress".lower(), "ablation", "learning-curves"}
    assert not session.optuna_study._storage.get_study_system_attrs(session.optuna_study._study_id)


def test_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    """A score, a figure and a link of the chain that are not finite, and names that rich reads as markup."""
    session = made_up_session(tmp_path, 0)
    odd = {"artifact_bytes": math.nan, "train_seconds": math.inf, "inactive": {"[/x]": "[/y]"}}
    chain = [["weights", math.nan], ["packed", 2.5]]
    kept = {"bytes": -0.1, "train": -0.1, "eval": -0.1, "run": -1.0}
    for value in (math.inf, 2.5):
        attrs = {"config": {}, "hash": "x", "techniques": ["[/x]"], "bpb_chain": chain, **odd}
        session.optuna_study.add_trial(create_trial(value=value, user_attrs=attrs, constraints=kept))
    told = {"bpb": 2.5, "sd": None, "seeds": {"7": 2.5}, "sound": True, "against": "[/z]"}
    session.optuna_study.set_user_attr("confirmed", {"1": {**told, "difference_bpb": -0.1}})
    session.optuna_study.set_user_attr("baseline", {"val_bpb": 2.6})
    facts = facts_of(session)
    assert facts.best == (1,) and facts.named(1).chain == (("packed", 2.5),) and not facts.named(0).figures
    json.loads(json_of(facts), parse_constant=pytest.fail)
    assert "2.5000" in page_of(facts) and "| #1 | 2.5000 |" in markdown_of(facts)
    console = Console(file=io.StringIO(), width=80)
    print_leaderboard(console, session)
    print_trial(console, session, 1)
    print_diff(console, session, 0, 1)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "! [/x]" in text and "-0.1000 from [/z]" in text


def test_money_is_told_of_gpus_alone(told: Any) -> None:
    priced = dataclasses.replace(told, dollars_per_gpu_hour=2.0)
    assert "dollars" not in own(page_of(priced)) and json.loads(json_of(priced))["dollars"] is None
    rented = dataclasses.replace(priced, gpus=8)
    hours = rented.hours()
    assert f"{hours * 8 * 2.0:,.2f} dollars at 2 an hour" in markdown_of(rented)
    facts = json.loads(json_of(rented))
    assert facts["gpu_hours"] == hours * 8 and facts["dollars"] == hours * 16 and facts["hours"] == hours


def with_study(session: Session, **changes: Any) -> Session:
    """The session of the same trials, its study's file changed."""
    return dataclasses.replace(session, study=dataclasses.replace(session.study, **changes))


def texts_of(session: Session, folder: Path) -> dict[str, str]:
    """All that a person reads of a study: each form of its report, and what the dashboard shows of it."""
    found = {form: write_report(session, folder / f"told{form}").read_text() for form in FORMS}
    live = Live(session, session.optuna_study)
    found |= {"live": live.page().decode(), "note": live.note(), "plots": json.dumps(dict(live.plots()))}
    return {form: own(text) if "<script>" in text else text for form, text in found.items()}


def test_the_studys_price_is_told_in_every_form(tmp_path: Path) -> None:
    session = made_up_session(tmp_path, 30)
    cuda = {**session.study.fixed, "device": "cuda"}
    rented = with_study(session, price=Price(2.5), gpus_per_trial=8, fixed=cuda)
    hours = facts_of(rented).hours()
    dollars = f"{hours * 8 * 2.5:,.2f} dollars at 2.5 an hour"
    told = texts_of(rented, tmp_path)
    assert all(dollars in told[form] for form in (".html", ".md", "live"))
    assert json.loads(told[".json"])["dollars"] == pytest.approx(hours * 20)
    given = write_report(rented, tmp_path / "given.md", dollars_per_gpu_hour=3.0).read_text()
    assert f"{hours * 24:,.2f} dollars at 3 an hour" in given


def test_a_loss_in_nats_is_called_so_everywhere(tmp_path: Path) -> None:
    session = made_up_session(tmp_path, 40)
    made_up_answers(tmp_path, facts_of(session).best[0])
    nats = with_study(session, foreign=Foreign(score_pattern=(r"loss (?P<loss>\S+)",)))
    told = texts_of(nats, tmp_path)
    for form, text in told.items():
        if form != ".json":
            assert "nats per token" in text and not re.search("bits per byte|bits/byte|BPB", text, re.I), form
    assert json.loads(told[".json"])["score"] == "nats per token"
    assert json.loads(json_of(facts_of(session)))["score"] == "bits per byte"
    shown = served(nats)
    ids = {t._trial_id for t in session.optuna_study.trials}
    assert "nats per token" in str(shown.notes(ids)) and "bits per byte" not in str(shown.notes(ids))


class Source:
    """What the dashboard reads of a study, without a database."""

    def __init__(self, session: Session) -> None:
        self.study = session.optuna_study

    def get_all_trials(self, study_id: int, deepcopy: bool = True) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=deepcopy)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return {}

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        return self.study.best_trial


def served(session: Session) -> ShownStorage:
    shown = ShownStorage.__new__(ShownStorage)
    shown.source = Source(session)  # type: ignore[assignment]
    shown.live = Live(session, session.optuna_study)
    shown.study_id = 0
    shown._shown = {}  # pyright: ignore[reportPrivateUsage]
    return shown


def test_the_dashboard_and_its_note_name_one_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's luck: by what is believed, worked out once for a state of the study."""
    session = made_up_session(tmp_path, 60, confirmed=False)
    lucky = made_up_trials(61)[60]
    lucky.values = [min(t.value for t in session.optuna_study.trials if t.value is not None) - 0.001]
    session.optuna_study.add_trial(lucky)
    asked: list[int] = []
    monkeypatch.setattr("pages.facts.beliefs_of_study", lambda *a: asked.append(1) or beliefs_of_study(*a))
    shown = served(session)
    assert shown.live is not None
    shown.live.page()
    named = shown.live.best()
    assert named == facts_of(session).best[0] != session.optuna_study.best_trial.number
    assert f"Best: trial #{named}," in shown.live.note()
    assert [shown.get_best_trial(0).number for _ in range(3)] == [named] * 3
    assert len(asked) == 2, "one of them is this test's own"


def test_the_dashboard_looks_at_a_finished_trial_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = made_up_trials(30)
    for number, trial in enumerate(trials):
        trial.number = number
    trials[4].state = TrialState.RUNNING
    wider = FloatDistribution(0.001, 0.1, log=True), FloatDistribution(0.0, 1.0)  # a space that was edited
    for trial, rate in zip((trials[7], trials[25]), wider, strict=True):
        trial.distributions = trial.distributions | {"matrix_lr": rate}
    for name in ("xsa", "ema"):
        del trials[12]._params[name], trials[12]._distributions[name]
    ours = SeenOnce()
    theirs = _CachedExtraStudyProperty()
    theirs.update(trials)
    ours.update(trials[:20])
    again: list[int] = []
    look = SeenOnce._update_user_attrs
    monkeypatch.setattr(SeenOnce, "_update_user_attrs", lambda s, t: again.append(t.number) or look(s, t))
    ours.update(trials)
    assert sorted(again) == [4, *range(20, 30)]
    for name in ("union_search_space", "intersection_search_space", "has_intermediate_values"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert dict(ours.union_user_attrs) == dict(theirs.union_user_attrs)


def test_what_one_thread_goes_through_no_other_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dashboard's requests and the reader of the report share the trials."""
    trial = made_up_trials(1)[0]
    attrs = trial.system_attrs
    values = list(trial.constraints.values())
    monkeypatch.setattr(_CachedStorage, "get_all_trials", lambda *_, **__: [trial])
    storage = FeasibleStorage.__new__(FeasibleStorage)
    shown = storage.get_all_trials(0, deepcopy=False)[0]
    assert shown.system_attrs["constraints"] == values
    assert "constraints" not in attrs


def test_the_note_of_a_study_says_what_it_asks(tmp_path: Path) -> None:
    session = with_study(made_up_session(tmp_path, 30), question="Does *xsa* help?")
    live = Live(session, session.optuna_study)
    notes = [live.note()]
    live.page()
    for note in (*notes, live.note()):  # before the results are read, and after
        assert "Does \\*xsa\\* help?" in note and session.study.limits.summary() in note
        assert "(/report)" in note and "Track: open" in note


def test_a_thousand_trials_are_quick_and_small(tmp_path: Path) -> None:
    session = made_up_session(tmp_path, 1000)
    began = time.process_time()
    path = write_report(session, tmp_path / "out" / "report.html")
    assert time.process_time() - began < 10.0
    assert path.stat().st_size < 8_000_000


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    session = made_up_session(tmp_path, 2)
    with pytest.raises(ValueError, match=r"one of \.html, \.md, \.json"):
        write_report(session, tmp_path / "report.pdf")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="Give another --to"):
        write_report(session, tmp_path / "file" / "report.html")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.skipif(not (os.path.exists(CHROMIUM) and shutil.which(DRIVER)), reason="needs Chromium")
@pytest.mark.parametrize("width", [800, 1440])
def test_the_page_in_a_browser(tmp_path: Path, width: int) -> None:
    from selenium import webdriver

    session = made_up_session(tmp_path, 80)
    made_up_answers(tmp_path, facts_of(session).best[0])
    path = write_report(session, tmp_path / "report.html")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        browser.get(path.as_uri())
        until = time.monotonic() + 60.0
        seen: Mapping[str, Any] = {"plots": [0]}
        while not all(seen["plots"]) and time.monotonic() < until:
            seen = browser.execute_script(LOOK)
        assert all(seen["plots"]) and len(seen["plots"]) >= 8, seen["plots"]
        bad = [*seen["over"], *seen["broken"]]
        assert seen["wide"] <= seen["room"] and not bad, bad
        for word in (
            "Best: trial #",
            "Leaderboard",
            "Budgets",
            "Effects",
            "Fresh seeds",
            "Ablation",
            "Audit",
        ):
            assert word in seen["text"]
        assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    finally:
        browser.quit()
