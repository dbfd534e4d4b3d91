"""The sentences of a report, the same on the page and in Markdown."""

from pages.facts import STATES, Facts
from search.common.console import counted
from search.report.rows import money_text


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
    if facts.best and facts.named(facts.best[0]).confirmed:
        return (
            "Means are over fresh seeds. A search value alone is one seed's, and the best of many is lucky."
        )
    return facts.caution


def state_line(facts: Facts) -> str:
    """Where it ran."""
    where = ", ".join(device for device in facts.devices if device != "None")
    ended = sum(trial.seconds > 0.0 for trial in facts.trials)
    return f"{counted(ended, 'trial')} ended on {where}." if where and ended else ""


def money_line(facts: Facts, dollars_per_gpu_hour: float) -> str:
    """Hours of trials, on the clock; of GPUs, and what they cost where the price is known."""
    return f"{money_text(facts.hours(), facts.gpus, dollars_per_gpu_hour)}."


def counts_line(facts: Facts) -> str:
    """200 trials: 150 feasible, 20 over a limit, …"""
    counts = facts.counts()
    told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{counted(len(facts.trials), 'trial')}: {told}" if told else "no trial yet"
