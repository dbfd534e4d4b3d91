"""The evidence's data are whole, replayed values are the table's, and its statistics are what they say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from benchmarks.evidence import early, files, replay, samplers, twins
from benchmarks.evidence.files import pack, read_lines, unpack
from benchmarks.evidence.table import FIGURES, SEED, Table, load_table, trained_on
from benchmarks.results import write_section
from corpus import embedded

RATES = {"structured": 3.0, "tpe": 1.0, "optuna_tpe": 1.5}  # powers of falling curves
optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def table() -> Table:
    return load_table()


@pytest.fixture(scope="module")
def trials() -> twins.Trials:
    return twins.load_trials()


def test_every_configuration_was_trained_and_the_best_on_more_seeds(table: Table) -> None:
    assert len(table.params) >= 250, "the space is of some size"
    assert table.results.keys() == table.params.keys()
    assert all(SEED in runs for runs in table.results.values())
    assert all(len(table.results[key]) >= 3 for key in table.ranked()[:10])
    for runs in table.results.values():
        for figures in runs.values():
            assert all(math.isfinite(figures[name]) and figures[name] > 0 for name in FIGURES)
    assert all(map(table.feasible, table.results)), "the page says that no limit binds"


def test_what_was_trained_matters_more_than_its_seed(table: Table) -> None:
    """Else the table would rank seeds, and no sampler could win."""
    values = [table.results[key][SEED]["val_bpb"] for key in table.ranked()]
    assert np.std(values) > 2 * replay.seed_sd(table)
    assert 0.3 < replay.additive_share(table) < 0.95, "effects are there, and not they alone"


@pytest.mark.parametrize("method", ["structured", "random", "optuna_tpe"])
def test_a_replayed_value_is_the_tables(table: Table, method: str) -> None:
    problem = replay.problem_of(table)
    asked: list[Any] = []

    def run(params: Any, rng: np.random.Generator) -> dict[str, float]:
        asked.append(dict(params))
        return dict(problem.run(params, rng))

    watched = samplers.Problem(problem.study, problem.space, run, problem.regret)
    curve = samplers.search(method, watched, 3, 12)
    best = table.results[table.ranked()[0]][SEED]["val_bpb"]
    found = []
    least = math.inf
    for params in asked:
        result = table.result(params)
        if result["artifact_bytes"] <= table.study.limits.artifact_bytes:
            least = min(least, result["val_bpb"] - best)
        found.append(least)
    assert curve == found and len(asked) == 12
    assert curve == samplers.search(method, problem, 3, 12), "a search repeats"


@pytest.mark.long
@pytest.mark.slow
def test_a_configuration_trained_again_gives_the_same(table: Table) -> None:
    """To the last bit on the table's machine and text, nearly so elsewhere."""
    from benchmarks.evidence import train

    embedded.ensure(twins.ROOT / "data", "sp1024")
    key = table.ranked()[0]
    found = train.train(table.space, table.params[key], SEED)
    told = table.results[key][SEED]
    if train.machine(table) == trained_on():
        assert found["val_bpb"] == told["val_bpb"]
        assert found["artifact_bytes"] - found["code_bytes"] == told["artifact_bytes"] - told["code_bytes"]
    assert found["val_bpb"] == pytest.approx(told["val_bpb"], abs=0.2)


def test_the_trials_lie_in_todays_space(trials: twins.Trials) -> None:
    stored = unpack(twins.TRIALS)
    assert len(trials.params) >= 0.9 * len(stored["trials"]) and len(trials.params) >= 100
    for params in trials.params:  # what was a gate is a place in a slot now
        left = [{n for n, v in row["params"].items() if params.get(n) != v} for row in stored["trials"]]
        assert min(left, key=len) <= {"fused_ce"}, "what a trial ran is what is read"
    for params in trials.params[:20]:
        trials.space.resolve(trials.space.repaired(params))
    kept = sum(bool(twins.keeps(result, trials.study)) for result in trials.results)
    assert 0.2 * len(trials.params) < kept < len(trials.params)


def test_the_data_are_small() -> None:
    folder = Path(twins.TRIALS).parent
    assert sum(path.stat().st_size for path in folder.glob("*.xz")) < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", twins.KINDS)
def test_the_cross_check_is_what_the_page_says(trials: twins.Trials, kind: str) -> None:
    pytest.importorskip("sklearn")
    page = (twins.ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith(f"| {kind} | "))
    cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    found = twins.cross_check(trials, kind)
    for target, cell in zip(twins.TARGETS, cells, strict=False):
        r2, rank = map(float, cell.split(", "))
        assert found[target]["r2"] == pytest.approx(r2, abs=0.1)
        assert found[target]["rank"] == pytest.approx(rank, abs=0.1)


def test_a_twin_is_no_sum_of_effects(trials: twins.Trials) -> None:
    """Boosting sees a product that a sum cannot; without scikit-learn nothing is asked."""
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    rows = rng.uniform(-1, 1, (300, 2))
    results = [{name: math.exp(float(a * b)) for name in twins.TARGETS} for a, b in rows]
    twin = twins.Twin("boosting", rows, results)
    said = np.log(twin.predict(np.array([[0.8, 0.8], [-0.8, -0.8], [0.8, -0.8], [-0.8, 0.8]]))["val_bpb"])
    assert said[:2].min() > 0.3 and said[2:].max() < -0.3


@pytest.mark.parametrize("kind", twins.KINDS)
def test_trees_say_what_the_fitted_model_says(kind: str) -> None:
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(2)
    rows = np.hstack([rng.uniform(-1, 1, (80, 3)), rng.integers(0, 2, (80, 3)).astype(float)])
    model = twins.model_of(kind, 0).fit(rows, rows @ rng.normal(size=6) + rows[:, 0] * rows[:, 3])
    others = np.vstack([rows, rng.uniform(-1.2, 1.2, (40, 6))])
    assert twins.Trees(model).predict(others) == pytest.approx(model.predict(others), abs=1e-9)
    assert twins.Trees(model).predict(others[:1])[0] == pytest.approx(model.predict(others[:1])[0], abs=1e-9)


def test_features_tell_configurations_apart(trials: twins.Trials) -> None:
    features = twins.Features(trials.space)
    rows = np.array([features(params) for params in trials.params[:40]])
    assert len(np.unique(rows, axis=0)) == len(rows) and np.isfinite(rows).all()
    assert rows.shape[1] == len(features.columns) + 3


def test_trials_to_reach_a_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler twice as fast needs half the trials, and the interval holds that."""
    monkeypatch.setattr(samplers, "DRAWS", 200)  # the ends of an interval, to a trial or two
    rng = np.random.default_rng(1)

    def curves(speed: float) -> np.ndarray:
        falls = rng.exponential(1.0, (200, 100)) * speed
        return 1.0 / (1.0 + np.cumsum(falls, axis=1))

    both = {"structured": curves(2.0), "tpe": curves(1.0)}
    ours, low, high = samplers.trials_to_reach(both, "structured", "tpe")
    assert 37 <= ours <= 43 and low <= 40 <= high and high - low < 8
    back, _, _ = samplers.trials_to_reach(both, "tpe", "structured")
    assert back == math.inf, "it never does in 100 trials"
    assert samplers.reach_sentences(both).endswith("interval below 60: met.\n")
    swapped = {"structured": both["tpe"], "tpe": both["structured"]}
    assert samplers.reach_sentences(swapped).endswith("interval below 60: not met.\n")


def test_contradictory_settings_cost_no_trial(table: Table) -> None:
    """Who knows no rules proposes them; a trainer refuses them before it starts."""
    problem = replay.problem_of(table)
    refused = []

    def run(params: Any, rng: np.random.Generator) -> dict[str, float]:
        if params["matrix_lr"] == 0.12 and len(refused) < 3:
            refused.append(params)
            raise ValueError("contradiction")
        return dict(problem.run(params, rng))

    picky = samplers.Problem(problem.study, problem.space, run, problem.regret)
    curve = samplers.search("optuna_tpe", picky, 0, 15)
    assert len(refused) == 3 and len(curve) == 15 and np.isfinite(curve).all()


def test_a_search_without_a_feasible_trial_counts_as_worst() -> None:
    curves = {"structured": np.array([[math.inf, 0.2], [math.inf, math.inf], [0.1, 0.1]])}
    assert samplers.reached(curves["structured"], 0.2) == 2
    assert "inf" in samplers.regret_table({"random": np.full((3, 5), math.inf)})


def test_a_stopped_command_goes_on(tmp_path: Path, table: Table) -> None:
    out = tmp_path / "searches.jsonl"
    problem = replay.problem_of(table)
    samplers.search_all(problem, out, {"random": 2}, trials=5)
    with out.open("a", encoding="utf-8") as file:
        file.write('{"method": "random", "seed": 2, "cur')  # killed while it wrote
    assert len(read_lines(out)) == 2
    samplers.search_all(problem, out, {"random": 3}, trials=5)
    assert [one["seed"] for one in read_lines(out)] == [0, 1, 2]
    assert samplers.curves_of(out, 5) == {}, "three searches say nothing"
    samplers.search_all(problem, out, {"random": samplers.LEAST}, trials=5)
    assert samplers.curves_of(out, 5)["random"].shape == (samplers.LEAST, 5)


def test_packed_files_and_sections_come_back(tmp_path: Path) -> None:
    pack(tmp_path / "x.json.xz", {"a": [1, None, "b"]})
    assert unpack(tmp_path / "x.json.xz") == {"a": [1, None, "b"]}
    page = tmp_path / "page.md"
    page.write_text("# P\n\nhead\n\n## One\n\nold\n\n## Two\n\nkept\n", encoding="utf-8")
    write_section("One", "new\n", page)
    assert page.read_text(encoding="utf-8") == "# P\n\nhead\n\n## One\n\nnew\n\n## Two\n\nkept\n"
    write_section("Two", "last", page)
    assert page.read_text(encoding="utf-8").endswith("## One\n\nnew\n\n## Two\n\nlast\n")
    write_section("Two", f"- {'word ' * 60}\n\n| {'cell ' * 60}|", page)
    *lines, row = page.read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 120 and len(row) > 300, "text is wrapped, a row of a table stays one"


def test_the_readmes_claim_is_the_pages() -> None:
    """Both are written by one command; whoever edits one by hand is found out."""

    def flat(path: Path) -> str:
        return " ".join(path.read_text(encoding="utf-8").split())

    _, _, rest = flat(files.README).partition(files.BEGINNING)
    claim, end, _ = rest.partition(files.END)
    assert end, "README.md has no claim"
    assert f"What this says: {claim.strip()}." in flat(files.DOCUMENT)


def test_a_claim_names_the_better_rival_and_replaces_the_old_one(tmp_path: Path) -> None:
    steps = np.linspace(1.0, 0.0, 100)
    curves = {name: np.tile(steps**power, (20, 1)) for name, power in RATES.items()}
    claim = samplers.claim_of(curves)
    reached = samplers.reached(curves["structured"], float(curves["optuna_tpe"][0, 79]))
    assert f"after {reached:.0f} trials (95 % interval {reached:.0f} to {reached:.0f})" in claim
    page = tmp_path / "README.md"
    page.write_text(f"a.\n{files.BEGINNING} old {files.END}\nb.\n", encoding="utf-8")
    for more in (*(f"{claim} {'x' * k}" for k in range(0, 60, 3)), claim):  # wherever a line breaks
        files.write_claim(more, page)
    text = page.read_text(encoding="utf-8")
    assert " ".join(text.split()) == " ".join(f"a. {files.BEGINNING} {claim} {files.END} b.".split())
    assert max(map(len, text.splitlines())) <= 120


def test_a_training_counts_once_and_reports_are_ranked() -> None:
    def trial(number: int, first: float, final: float, weights: float) -> dict[str, Any]:
        curve = [[50.0, first], [100.0, final]]
        return {"number": str(number), "bpb": final, "chain": [["weights", weights]], "curve": curve}

    told = [trial(k, 3.0 + 0.1 * k, 2.0 - 0.1 * k, 2.5 + k) for k in range(6)]
    twin = trial(6, 3.0, 1.0, 2.5)  # the training of the first, another scorer
    given_up = {**trial(7, 3.9, 3.9, 3.9), "bpb": None}
    found = early.trainings([*told, twin, given_up])
    assert found == told
    assert early.correlations(found, lambda t: t["bpb"]) == pytest.approx([-1.0])
    assert early.correlations(found, lambda t: t["chain"][0][1]) == pytest.approx([1.0])
