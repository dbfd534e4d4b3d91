"""print_ablated: an ablation as tables of 80 columns and sentences; facts_of_ablated: its answer.json."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape

from claims.ablation.chain import Link, chain_of
from claims.ablation.family import FAILS, HELPS, HURTS, NO_EVIDENCE, SAME, Ablated, Effect, Interaction
from claims.answers import Answer, Rules, failures_text, p_text, text_notes
from claims.compare import interval, new_table, say
from claims.race import in_order, mean_sd
from claims.runs import number
from claims.sequential import LAST, LEVEL, Verdict

WIDE = 100  # columns from which a table tells all
COLOURS = {HELPS: "green", HURTS: "red", "reinforce": "green", "overlap": "yellow", FAILS: "red"}


def print_ablated(console: Console, told: Ablated) -> None:
    family = told.family
    whole = console.width >= WIDE
    say(console, "")
    console.print(effects_table(told.effects, family.single, whole=whole))
    say(console, "effect: BPB with the technique less BPB without it; negative is better")
    if told.interactions:
        say(console, "")
        console.print(pairs_table(told.interactions, family.others, whole=whole))
        say(console, "effect: what both do together, less the sum of both; negative is better")
    print_chain(console, told)
    say(console, "")
    for text in sentences(told):
        say(console, text)


def effects_table(effects: Sequence[Effect], rules: Rules, *, whole: bool) -> Any:
    more = ("p", "seeds") if whole else ()
    table = new_table("technique", "effect", rules.interval, *more, "seconds", "bytes", "verdict")
    for e in effects:
        sign = "-" if e.change.kind == "taken away" else "+"
        v = e.answer.verdict
        counted = (p_text(rules.p_of(v)), str(v.pairs)) if whole else ()
        cells = [signed(e.mean, "+.4f"), interval(e.low, e.high), *counted]
        costs = [signed(e.seconds, "+,.1f"), signed(e.bytes, "+,.0f")]
        table.add_row(escape(f"{sign} {e.change.name}"), *cells, *costs, coloured(e.verdict))
    return table


def pairs_table(interactions: Sequence[Interaction], rules: Rules, *, whole: bool) -> Any:
    more = ("p", "seeds") if whole else ()
    table = new_table("pair", "effect", rules.interval, *more, "both", "sum", "verdict")
    for one in interactions:
        v = one.verdict
        counted = (p_text(rules.p_of(v)), str(v.pairs)) if whole else ()
        cells = [signed(v.mean, "+.4f"), interval(v.low, v.high), *counted]
        sums = [signed(one.both, "+.4f"), signed(one.sum, "+.4f")]
        table.add_row(escape(one.pair.name), *cells, *sums, coloured(one.word))
    return table


def signed(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else ""


def coloured(word: str) -> str:
    return f"[{COLOURS[word]}]{word}[/]" if word in COLOURS else word


def print_chain(console: Console, told: Ablated) -> None:
    """The configuration's, and beside it the reference's."""
    family = told.family
    links = chain_of(told.results, family.base.label, family.seeds)
    if not links:
        return
    beside: dict[str, Link] = {}
    if family.reference:
        beside = {x.stage: x for x in chain_of(told.results, family.reference.label, family.seeds)}
    table = new_table("BPB chain", "BPB ± sd", "step ± sd", *([family.reference_name] if beside else ()))
    for link in links:
        other = beside.get(link.stage)
        cells = [f"{other.mean:.4f} ± {other.sd:.4f}" if other else ""] if beside else []
        table.add_row(escape(link.stage), *ends(link), *cells)
    say(console, "")
    console.print(table)
    say(console, f"on the tokens of a report, {links[0].seeds} seeds; packed: the model as it is submitted")


def ends(link: Link) -> tuple[str, str]:
    sd = f" ± {link.sd:.4f}" if math.isfinite(link.sd) else ""
    step_sd = f" ± {link.step_sd:.4f}" if math.isfinite(link.step_sd) else ""
    return f"{link.mean:.4f}{sd}", f"{link.step:+.4f}{step_sd}" if math.isfinite(link.step) else ""


def sentences(told: Ablated) -> list[str]:
    """The chain's first: it may turn the others over; then what each technique does; then what failed."""
    family = told.family
    found = list[str]()
    if told.tilt and told.tilt.score.pairs:
        scorer = family.base.resolved().owner("scorer")
        found.append(told.tilt.sentence(scorer.name if scorer else "", family.others))
    heads = {SAME: f"No difference larger than {family.rules.within:g} bits per byte (95 %)"}
    for word in (HELPS, HURTS, SAME, NO_EVIDENCE, FAILS):
        if names := [stated(e) for e in told.effects if e.verdict == word]:
            found.append(f"{heads.get(word, word.capitalize())}: {', '.join(names)}.")
    found += [text for e in told.effects for text in facts_against(e.answer)]
    found.append(f"A wrong helps, hurts, overlap or reinforce: at most once in {1 / LEVEL:.0f} such answers.")
    return list(dict.fromkeys([*found, *text_notes(family.arms)]))


def stated(e: Effect) -> str:
    """`+ xsa (about 3 more seeds would tell)`."""
    v = e.answer.verdict
    name = f"{'+ ' if e.change.kind == 'added' else ''}{e.change.name}"
    if e.verdict != NO_EVIDENCE:
        return name
    hopeless = v.pairs + v.more > LAST or v.more >= LAST
    more = f"more than {LAST - v.pairs}" if hopeless else f"about {v.more}"
    return f"{name} ({more} more seeds would tell)"


def facts_against(told: Answer) -> list[str]:
    """Runs without a score and limits that are not kept, by arm."""
    failed = [f"{who}: {failures_text(told, who)}." for who, runs in told.failed.items() if runs]
    return failed + [
        f"{who} is over a limit: {'; '.join(texts)}." for who, texts in told.over.items() if texts
    ]


def facts_of_ablated(told: Ablated) -> dict[str, Any]:
    """For a machine, null where there is no number. The figures of an effect are with the technique less
    without it; a pair's are beyond the sum of both."""
    family = told.family
    runs = {arm.label: in_order(told.results, arm.label, family.seeds) for arm in family.arms}
    scores = mean_sd([run.bpb for run in runs[family.base.label] if not run.reason])
    return {
        "label": family.base.label,
        "configuration": family.base.settings(),
        "effects": [facts_of_effect(e, family.single) for e in told.effects],
        "pairs": [facts_of_pair(one, family.others) for one in told.interactions],
        "chain": facts_of_chain(told, family.base.label),
        "score": {"mean": number(scores[0]), "sd": number(scores[1])},
        "reference": facts_of_reference(told),
        "sentences": sentences(told),
        "seeds": [run.seed for run in runs[family.base.label]],
        "level": LEVEL,
        "within": family.rules.within,
        "runs": {label: [asdict(run) for run in found] for label, found in runs.items()},
    }


def facts_of_effect(e: Effect, rules: Rules) -> dict[str, Any]:
    figures = {"mean": e.mean, "low": e.low, "high": e.high, "seconds": e.seconds, "bytes": e.bytes}
    what = {"technique": e.change.technique, "change": e.change.kind, "also": list(e.change.also)}
    told = {"p": rules.p_of(e.answer.verdict), "verdict": e.verdict, "pairs": e.answer.verdict.pairs}
    return what | {name: number(value) for name, value in figures.items()} | told


def facts_of_pair(one: Interaction, rules: Rules) -> dict[str, Any]:
    v = one.verdict
    figures = {"mean": v.mean, "low": v.low, "high": v.high, "both": one.both, "sum": one.sum}
    what = {"techniques": [one.pair.one.technique, one.pair.other.technique]}
    told = {"p": rules.p_of(v), "verdict": one.word, "pairs": v.pairs}
    return what | {name: number(value) for name, value in figures.items()} | told


def facts_of_chain(told: Ablated, label: str) -> list[dict[str, Any]]:
    links = chain_of(told.results, label, told.family.seeds)
    return [{"stage": x.stage, "mean": number(x.mean), "sd": number(x.sd)} for x in links]


def facts_of_reference(told: Ablated) -> dict[str, Any] | None:
    family = told.family
    if family.reference is None or told.tilt is None:
        return None

    def facts_of(v: Verdict) -> dict[str, Any]:
        figures = {"mean": v.mean, "low": v.low, "high": v.high, "p": family.others.p_of(v)}
        return {name: number(value) for name, value in figures.items()} | {"verdict": v.kind}

    return {
        "label": family.reference_name,
        "chain": facts_of_chain(told, family.reference.label),
        "score": facts_of(told.tilt.score),
        "model": facts_of(told.tilt.model),
    }
