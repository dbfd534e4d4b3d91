"""write_report(session, to): the study's report as HTML, Markdown or JSON, by the file's ending."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pages.facts import Facts, all_effects, facts_of
from pages.html import TOP, measured, page_of, techniques
from pages.words import (
    advice,
    change_rows,
    counts_line,
    group_rows,
    headline,
    in_its_unit,
    legality_rows,
    money_line,
    pair_rows,
    unsound_text,
)
from search.session.session import Session
from search.workers.record import chain_text

EFFECTS = 20  # rows of each table of effects in Markdown


def write_report(session: Session, to: Path | None, *, dollars_per_gpu_hour: float | None = None) -> Path:
    """Writes the report, runs/<study>/report.html where nobody names a file. Returns its path. Without a
    price it takes the study's. ValueError for another ending, or a path that cannot be written."""
    path = to or session.folders.runs / "report.html"
    if path.suffix not in FORMS:
        raise ValueError(
            f"A report is one of {', '.join(FORMS)}, by its file's ending, but --to is {path}. Give another."
        )
    facts = facts_of(session)
    if dollars_per_gpu_hour is not None:
        facts = dataclasses.replace(facts, dollars_per_gpu_hour=dollars_per_gpu_hour)
    write_whole(path, FORMS[path.suffix](facts))
    return path


def write_whole(path: Path, text: str) -> None:
    """The file is there whole, or as it was. ValueError where it cannot be written."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise ValueError(
            f"A report needs a file that can be written, but {path}: {error.strerror}. Give another --to."
        ) from error


def json_of(facts: Facts) -> str:
    """All facts; null where nothing is known, no NaN."""
    told = {
        "score": in_its_unit(facts, "bits per byte"),
        "hours": facts.hours(),
        "gpu_hours": facts.gpu_hours(),
        "dollars": facts.dollars(),
        **dataclasses.asdict(facts),
    }
    return json.dumps(told, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def markdown_of(facts: Facts) -> str:
    """The page's text and tables, without its figures."""
    parts = [f"# {facts.name}"]
    parts += [facts.question] if facts.question else []
    parts += [f"**{headline(facts)}** {advice(facts)}"]
    parts += [f"{counts_line(facts)}. Limits: {facts.limits_text}. Track: {facts.track}."]
    parts += [money_line(facts)]
    if facts.best:
        idle = any(facts.named(number).inactive for number in facts.best[:TOP])
        unsound = unsound_text(facts.named(number).confirmed for number in facts.best[:TOP])
        legend = ["! = on, but changed nothing"] * idle + [unsound] * bool(unsound)
        parts += ["## Leaderboard", board(facts), *legend]
        parts += ["To run the best again:", f"```\n{facts.repeat}\n```"]
    parts += claims(facts)
    over = {limit.constraint: limit.label for limit in facts.limits}
    broke = [[f"over: {over.get(name, name)}", str(n)] for name, n in facts.over_counts().most_common()]
    broke += [[f"failed: {name}", str(n)] for name, n in facts.failures().most_common()]
    parts += ["## What broke", grid(["reason", "trials"], broke)] if broke else []
    parts += ["## Effects", *effects(facts)]
    if facts.best and (links := facts.named(facts.best[0]).chain):
        parts += ["## Where the best got its BPB", f"On the tokens of a report: {chain_text(links)}."]
    found = [[f"#{t.number}", text] for t in facts.trials for text in t.findings]
    parts += ["## Audit", grid(["trial", "finding"], found) if found else "No trial has a finding."]
    parts += [grid(["legality", "trials"], legality_rows(facts))]
    return in_its_unit(facts, "\n\n".join(parts) + "\n")


def claims(facts: Facts) -> list[str]:
    """What ran on fresh seeds, and the configuration that was taken apart."""
    parts: list[str] = []
    if facts.groups or facts.compared:
        parts += ["## What was confirmed"]
        parts += [grid(*group_rows(facts))] if facts.groups else []
        unsound = unsound_text(group.text for group in facts.groups)
        parts += [unsound] if unsound else []
        parts += ["\n".join(f"- {one.sentence}" for one in facts.compared)] if facts.compared else []
    if told := facts.ablation:
        parts += [f"## Ablation of {told.label}", f"{told.seeds_text}.", grid(*change_rows(told.changes))]
        parts += ["Pairs, beyond the sum of both:", grid(*pair_rows(told.pairs))] if told.pairs else []
        links = [[stage, f"{mean:.4f}", "" if sd is None else f"{sd:.4f}"] for stage, mean, sd in told.chain]
        parts += [grid(["stage", "BPB", "sd"], links)] if links else []
        parts += [*told.sentences]
    return parts


def board(facts: Facts) -> str:
    best = [facts.named(number) for number in facts.best[:TOP]]
    fresh = ["fresh seeds"] if any(trial.confirmed for trial in best) else []
    believed = ["believed"] if any(trial.believed is not None for trial in best) else []
    limits = [f"{lim.label}, {lim.unit}" for lim in facts.limits]
    heads = ["trial", "BPB", *believed, *fresh, *limits, "legality", "techniques"]
    rows: list[list[str]] = []
    for trial in best:
        figures = [measured(trial.figures.get(limit.figure), limit.unit) for limit in facts.limits]
        seeds = [trial.confirmed] if fresh else []
        mean = ["" if trial.believed is None else f"{trial.believed:.4f}"] if believed else []
        told = [trial.legality, techniques(trial)]
        rows.append([f"#{trial.number}", f"{trial.bpb:.4f}", *mean, *seeds, *figures, *told])
    return grid(heads, rows)


def effects(facts: Facts) -> list[str]:
    if facts.effects is None:
        return [facts.no_effects]
    parts: list[str] = []
    for title, found in all_effects(facts.effects).items():
        rows = [
            [e.name, f"{e.mean:+.4f}", f"{e.low:+.4f} to {e.high:+.4f}", str(e.trials), e.verdict]
            for e in found[:EFFECTS]
        ]
        parts += [grid([title, "effect", "95 % interval", "trials", "verdict"], rows)] if rows else []
    return parts


def grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


FORMS = {".html": page_of, ".md": markdown_of, ".json": json_of}
