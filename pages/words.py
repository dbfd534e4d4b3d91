"""The sentences of a report, the same on the page and in Markdown."""

from collections import Counter
from collections.abc import Iterable

from pages.claimed import Change
from pages.facts import STATES, Facts
from search.common.console import counted
from search.common.tables import in_nats
from search.report.rows import money_text
from search.session.session import Session
from search.workers.record import plain

Rows = tuple[list[str], list[list[str]]]  # heads and rows of a table


def in_its_unit(facts: Facts, text: str) -> str:
    """Of a study that is scored in nats per token, the text without bits per byte."""
    return in_nats(text) if facts.in_nats else text


def headline(facts: Facts) -> str:
    """What came out, in one sentence."""
    if not facts.best:
        return "No trial kept every limit yet."
    best = facts.named(facts.best[0])
    value = f"{best.bpb:.4f}"
    if best.confirmed:
        value = f"{best.confirmed}, search value {value}"
    elif best.believed is not None:
        value = f"believed {best.believed:.4f}, observed {value}"
    text = f"Best: trial #{best.number}, {value} bits per byte"
    group = next((g for g in facts.groups if g.label == f"#{best.number}"), None)
    if group is not None and group.difference is not None:
        return f"{text}; {group.difference:+.4f} from {group.against} on fresh seeds."
    if facts.baseline and best.bpb is not None:
        text += f"; {best.bpb - float(facts.baseline['val_bpb']):+.4f} from the start"
    return f"{text}."


def advice(facts: Facts) -> str:
    """What the numbers cannot tell."""
    told = facts.caution
    if facts.best and facts.named(facts.best[0]).confirmed:
        told = (
            "Means are over fresh seeds. A search value alone is one seed's, and the best of many is lucky."
        )
    return " ".join(dict.fromkeys([told, *(note for group in facts.groups for note in group.notes)]))


def state_line(facts: Facts) -> str:
    """Where it ran."""
    where = ", ".join(device for device in facts.devices if device != "None")
    ended = sum(trial.seconds > 0.0 for trial in facts.trials)
    return f"{counted(ended, 'trial')} ended on {where}." if where and ended else ""


def money_line(facts: Facts) -> str:
    """Hours of trials, on the clock; of GPUs, and what they cost where the price is known."""
    return f"{money_text(facts.hours(), facts.gpus, facts.dollars_per_gpu_hour)}."


def counts_line(facts: Facts) -> str:
    """200 trials: 150 feasible, 20 over a limit, …"""
    counts = facts.counts()
    told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{counted(len(facts.trials), 'trial')}: {told}" if told else "no trial yet"


def group_rows(facts: Facts) -> Rows:
    """What `confirm` ran."""
    shrunken = ["expected of it"] if any(group.shrunken is not None for group in facts.groups) else []
    ruled = ["challenge's rule"] if any(group.rule is not None for group in facts.groups) else []
    rows: list[list[str]] = []
    for group in facts.groups:
        expected = ["" if group.shrunken is None else f"{group.shrunken:.4f}"] if shrunken else []
        search = "" if group.search_bpb is None else f"{group.search_bpb:.4f}"
        difference = "" if group.difference is None else f"{group.difference:+.4f}"
        rule = ["" if group.rule is None else "holds" if group.rule else "does not hold"] if ruled else []
        rows.append([group.label, search, *expected, group.text, difference, group.against, *rule])
    heads = ["trial", "search value", *shrunken, "fresh seeds", "difference", "against", *ruled]
    return heads, rows


def unsound_text(texts: Iterable[str]) -> str:
    """What the ! behind a mean on fresh seeds says; "" without one."""
    if not any(text.endswith("!") for text in texts):
        return ""
    return "! behind fresh seeds = a run of them failed or was over a limit, and the challenge's rule fails."


def legality_rows(facts: Facts) -> list[list[str]]:
    """Verdict, and how many of what was tried have it."""
    counts = Counter(trial.legality for trial in facts.trials)
    return [[name, str(count)] for name, count in sorted(counts.items())]


def change_rows(changes: Iterable[Change]) -> Rows:
    rows = [
        [
            one.name,
            signed(one.mean),
            between(one),
            signed(one.seconds, 1),
            "" if one.bytes is None else f"{one.bytes:+,.0f}",
            one.change,
            one.verdict,
        ]
        for one in changes
    ]
    return ["technique", "effect", "interval", "seconds", "bytes", "change", "verdict"], rows


def pair_rows(pairs: Iterable[Change]) -> Rows:
    return ["pair", "effect", "interval", "verdict"], [
        [one.name, signed(one.mean), between(one), one.verdict] for one in pairs
    ]


def signed(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:+.{digits}f}"


def between(one: Change) -> str:
    return "" if one.low is None or one.high is None else f"{one.low:+.4f} to {one.high:+.4f}"


def study_note(session: Session, facts: Facts | None) -> str:
    """The note of a study's page in Markdown: its question, limits, best, where the report is, its file."""
    study = session.study
    parts = [f"## {plain(study.name)}", f"*{plain(study.question)}*" if study.question else ""]
    if facts is None:
        parts += ["The results are being read. [The report](/report) has them."]
    else:
        parts += [f"**{plain(headline(facts))}** {plain(advice(facts))}", f"{plain(counts_line(facts))}."]
        parts += ["[The whole report](/report), made of the study as it is when it is opened."]
    parts += [f"Limits: {study.limits.summary()}. Track: {study.track}. Starts from {session.trainer.start}."]
    parts += [
        "Hyperparameter Importance is optuna-dashboard's: shares without intervals, of the better trials. By "
        "how much each setting moves BPB, and how surely, is under Effects on the study's first page and in "
        "the report."
    ]
    note = "\n\n".join(part for part in parts if part)
    return in_nats(note) if study.in_nats else note
