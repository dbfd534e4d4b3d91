"""compare(asked): `search.py compare`: two or more configurations on the same fresh seeds; who is better."""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from claims.answers import Answer, Rules, answer, p_text, row_of_arm, sentence, text_notes
from claims.arms import Arm, OpenSession, arm_of_source, arm_of_study, arms_of
from claims.race import Course, Results, Tell, in_order, mean_sd, race
from claims.runs import (
    Place,
    Plan,
    Run,
    Runner,
    alone,
    number,
    register,
    timeout_of,
    write_json,
)
from claims.sequential import FIRST, LAST, LEVEL, SURE, WITHIN, least_told
from search.common.machine import num_cores, visible_gpus
from search.common.options import WorkerSpec
from search.common.paths import shown
from search.session.session import Session
from search.stage_cache.reuse import Reuse, open_reuse
from search.study.model import Study
from search.workers.prepare import check_data
from techniques.config import Config

DEFAULT_PRESET = "laptop"
SEEDS = 12  # of each arm at most, where nobody says


def no_session() -> Session:
    raise ValueError("A trial is one of a study. Give its --study.")


@dataclass(frozen=True)
class Asked:
    """What the command line said."""

    words: tuple[str, ...] = ()
    trials: tuple[int, ...] = ()
    base: str = ""
    seeds: int = SEEDS
    within: float = WITHIN
    workers: int | None = None
    home: Path = Path()
    trainer: Path | None = None
    fork: bool = True  # runs on a CPU from a process that has imported the trainer
    study: Study | None = None  # given, or needed for its trials
    session: OpenSession = no_session


def compare(console: Console, asked: Asked) -> list[Answer]:
    """Raises ValueError for what a person must solve; KeyboardInterrupt when it was stopped."""
    check_seeds(asked.seeds)
    if not math.isfinite(asked.within):
        raise ValueError(f"`--within` must be a finite number of bits per byte, but got {asked.within}.")

    def base() -> Arm:
        if asked.study is not None and not asked.base:
            return arm_of_study(asked.study)
        return arm_of_source(asked.base or DEFAULT_PRESET, asked.session)

    arms = arms_of(asked.words, asked.trials, base, asked.session)
    study = asked.study
    if asked.trials or asked.base.isdecimal():
        study = asked.session().study  # with its limits as they were measured
    rules = Rules(asked.within, LEVEL / (len(arms) - 1), study.limits if study else None)
    place = place_of(arms, asked, study)
    plan = register("compare", arms, place, used=set())
    seeds = plan.seeds[: asked.seeds]
    print_plan(console, plan, arms, place, asked.seeds, rules.level)
    base_label = arms[0].label
    others = [arm.label for arm in arms[1:]]

    def answers(results: Results) -> list[Answer]:
        return [answer(results, label, base_label, seeds, rules) for label in others]

    def settled(results: Results) -> set[str]:
        done = {one.arm for one in answers(results) if one.kind != "undecided"}
        return done | ({base_label} if len(done) == len(others) else set())

    results = run_all(console, plan, arms, place, Course(seeds, settled))
    told = answers(results)
    print_answers(console, results, told, seeds, rules)
    say_notes(console, notes := text_notes(arms))
    write_json(plan.folder / "answer.json", as_facts(results, told, seeds, rules, notes))
    return told


def as_facts(
    results: Results, told: Sequence[Answer], seeds: Sequence[int], rules: Rules, notes: Sequence[str] = ()
) -> dict[str, object]:
    """What was answered and from which runs, for a machine; null where there is no number."""
    labels = [told[0].base, *(one.arm for one in told)]

    def facts_of(one: Answer) -> dict[str, object]:
        figures = {name: number(value) for name, value in vars(one.verdict).items() if name != "kind"}
        whole = figures | {"p": rules.p_of(one.verdict), "level": rules.level, "within": rules.within}
        return {
            "arm": one.arm,
            "base": one.base,
            "answer": one.kind,
            "sentence": " ".join([sentence(one, rules), *notes]),
            **whole,
        }

    runs = {label: [asdict(run) for run in in_order(results, label, seeds)] for label in labels}
    return {"answers": [facts_of(one) for one in told], "runs": runs}


def check_seeds(seeds: int) -> None:
    if not FIRST <= seeds <= LAST:
        raise ValueError(f"The test needs {FIRST} to {LAST} seeds of each arm, but got --seeds {seeds}.")


def place_of(arms: Sequence[Arm], asked: Asked, study: Study | None) -> Place:
    """Where the runs are: min(cores, GPUs) side by side. The data is checked, the default one made."""
    configs = [arm.resolved().config for arm in arms]
    config = configs[0]
    each = study.gpus_per_trial if study else 1
    found = () if config.device == "cpu" else visible_gpus(os.environ)
    gpus = tuple(",".join(found[i : i + each]) for i in range(0, len(found) - each + 1, each))
    if config.device == "cuda" and not gpus:
        raise ValueError(
            f'The runs demand a GPU (device = "cuda"; {each} each), but this machine shows none.'
        )
    if asked.trainer is None:
        for one in configs:
            check_data_of(one)
    return Place(
        home=asked.home,
        ranks=each,
        gpus=gpus,
        workers=min(asked.workers or LAST, len(gpus) or num_cores()),
        timeout_s=study.timeout_seconds if study else timeout_of(configs),
        trainer=asked.trainer,
        fork=asked.fork,
    )


def check_data_of(config: Config) -> None:
    """ValueError with the way to the data where it is not here; the default corpus is built."""
    seq_len = max(config.train_seq_len, config.eval_seq_len)
    check_data(config.data_path, config.tokenizer_path, vocab_size=config.vocab_size, seq_len=seq_len)


def print_plan(
    console: Console, plan: Plan, arms: Sequence[Arm], place: Place, seeds: int, level: float
) -> None:
    names = ", ".join(arm.label for arm in arms[1:])
    print_where(console, f"{names} against {arms[0].label}", plan, seeds, place)
    sd = f"{least_told(seeds, level):.1f} standard deviations of a seed"
    say(console, f"{seeds} seeds tell a difference of {sd} with {100 * SURE:.0f} %")


def print_where(console: Console, what: str, plan: Plan, seeds: int, place: Place) -> None:
    where = f"{place.workers} at once on {'GPUs' if place.gpus else 'the CPU'}"
    say(console, f"{what}: at most {seeds} seeds each, {where}")
    path = f"{shown(plan.folder)}/plan.json"
    console.print(
        f"plan, written before the first run: {path}", highlight=False, markup=False, soft_wrap=True
    )


def say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)


def say_notes(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        say(console, f"\n{note}")


def run_all(
    console: Console,
    plan: Plan,
    arms: Sequence[Arm],
    place: Place,
    course: Course,
) -> Results:
    """The runs of a plan, those that are kept and new ones, each told as it ends."""
    with alone(plan.folder):
        runner = Runner(plan, arms, place, reuse_of(place))
        if kept := sum(map(len, runner.kept(course.seeds).values())):
            say(console, f"{kept} runs of this question are here already and count")
        tell = teller(console, course.seeds)
        return race(runner, course.seeds, settled=course.settled, tell=tell, pick=course.pick)


def teller(console: Console, seeds: Sequence[int]) -> Tell:
    began = time.monotonic()

    def tell(label: str, run: Run) -> None:
        found = run.reason or f"{run.bpb:.4f}"
        at_s = time.monotonic() - began
        say(console, f"[{at_s:5.0f} s] seed {seeds.index(run.seed) + 1:2d}  {label}: {found}")

    return tell


def reuse_of(place: Place) -> Reuse | None:
    if place.trainer is not None:
        return None
    cache = place.home / "runs" / ".cache"
    spec = WorkerSpec(study=Path(), home=place.home, target=0, threads=place.threads, cache=cache)
    return open_reuse(spec, ranks=place.ranks, environ=os.environ)


def print_answers(
    console: Console, results: Results, told: Sequence[Answer], seeds: Sequence[int], rules: Rules
) -> None:
    """Scores, then what they cost, then a sentence for each question."""
    labels = [told[0].base, *(one.arm for one in told)]
    by_arm = {one.arm: one.verdict for one in told}
    level = f"{100 - 100 * rules.level:.3g} %"
    scores = new_table("arm", "seeds", "BPB ± sd", "diff.", f"{level} interval", "p")
    costs = new_table("arm", "bytes", "training, s", "evaluation, s")
    for label in labels:
        runs, score = row_of_arm(results, label, seeds)
        v = by_arm.get(label)
        cells = (
            ("", "", "") if v is None else (f"{v.mean:+.4f}", interval(v.low, v.high), p_text(rules.p_of(v)))
        )
        scores.add_row(escape(label), str(sum(not run.reason for run in runs)), score, *cells)
        costs.add_row(escape(label), *costs_of_runs(runs))
    say(console, "")
    console.print(scores)
    say(console, "")
    console.print(costs)
    for one in told:
        say(console, "")
        say(console, sentence(one, rules))


def new_table(first: str, *others: str) -> Table:
    table = Table(show_edge=False, pad_edge=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def interval(low: float, high: float) -> str:
    return f"{low:+.4f} to {high:+.4f}" if abs(low) < 1e3 else "none yet"


def costs_of_runs(runs: Sequence[Run]) -> list[str]:
    """Means over the runs that have a score."""
    good = [run for run in runs if not run.reason]
    formats = {"artifact_bytes": "{:,.0f}", "train_seconds": "{:.1f}", "eval_seconds": "{:.1f}"}
    means = {name: mean_sd([run.of(name) for run in good])[0] for name in formats}
    return [text.format(means[name]) if good else "" for name, text in formats.items()]
