"""page_of(facts) -> str: one HTML file that needs no network: text, tables, figures, and Plotly itself."""

import html
import itertools
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from pages import figures
from pages.facts import FEASIBLE, STATES, Facts, LimitFacts, TrialFacts, all_effects
from pages.words import (
    advice,
    change_rows,
    group_rows,
    headline,
    in_its_unit,
    legality_rows,
    money_line,
    pair_rows,
    state_line,
    unsound_text,
)
from search.report.effects import CAUTION as EFFECTS_CAUTION
from search.report.effects import Effect
from search.report.leaderboard import ranking_text

STYLE = Path(__file__).with_name("style.css")
TOP = 15  # trials of the table
BARS = 8  # trials with budget bars
MORE = 12  # rows of a table of effects beside its figure
SETTINGS = {"responsive": True, "displayModeBar": False}  # drag zooms, a double click resets


def page_of(facts: Facts) -> str:
    """The whole file."""
    draws = Drawings()
    sections = [
        section(
            "Progress",
            "Every trial in order; the line is the best that keeps all limits. What is at the upper edge is "
            "above it.",
            draws.add(figures.progress(facts)),
        ),
        leaderboard(facts),
        budgets(facts, draws),
        effects_section(facts, draws),
        section(
            "Learning curves",
            "Bits per byte on the way, over steps; the last point is the score, packed and with its scorer. "
            "A curve that ends early was given up.",
            draws.add(figures.curves(facts)),
        ),
        confirmed(facts, draws),
        ablation_section(facts, draws),
        section(
            "What broke", "Trials without a feasible result, by reason.", draws.add(figures.reasons(facts))
        ),
        time_section(facts, draws),
        section(
            "Where the best got its BPB",
            "Bits per byte of its last weights, their average, the packed model and the scorer, on the "
            "tokens of a report: what training gave, and what came behind it.",
            draws.add(figures.chain(facts)),
        ),
        winner(facts),
        audit(facts),
    ]
    title = html.escape(f"Caddie: {facts.name}")
    made = time.strftime("%Y-%m-%d %H:%M")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head><body><main>"
        f"{in_its_unit(facts, head(facts) + ''.join(sections))}"
        f"<footer>Made {made} by <code>search.py report</code>.</footer></main>"
        f"<script>{plotly()}</script>{in_its_unit(facts, draws.script())}</body></html>\n"
    )


def plotly() -> str:
    """Plotly's own minified script, as the installed package has it."""
    from plotly.offline import get_plotlyjs  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    return str(get_plotlyjs())


class Drawings:
    """Figures as they are placed; their data stands once, at the page's end."""

    def __init__(self) -> None:
        self.all: list[figures.Figure] = []

    def add(self, figure: figures.Figure | None) -> str:
        if figure is None:
            return ""
        self.all.append(figure)
        height = figure["layout"]["height"]
        return f'<div class="figure" id="figure-{len(self.all) - 1}" style="min-height:{height}px"></div>'

    def script(self) -> str:
        data = json.dumps([{"data": f["data"], "layout": f["layout"]} for f in self.all]).replace(
            "</", "<\\/"
        )
        return (
            f"<script>const settings = {json.dumps(SETTINGS)};\n{data}.forEach((figure, k) => "
            "Plotly.newPlot(`figure-${k}`, figure.data, figure.layout, settings));</script>"
        )


def section(title: str, text: str, body: str, *, kind: str = "") -> str:
    """A part of the page; "" while it has nothing to show."""
    if not body:
        return ""
    said = f"<p>{html.escape(text)}</p>" if text else ""
    return f'<section class="{kind}"><h2>{html.escape(title)}</h2>{said}{body}</section>'


def head(facts: Facts) -> str:
    counts = facts.counts()
    tiles = "".join(
        f'<div class="tile"><b style="color:{figures.COLOURS[state]}">{counts[state]}</b>{state}</div>'
        for state in STATES
        if counts[state] or state == FEASIBLE
    )
    told = [
        f"Limits: {facts.limits_text}. Track: {facts.track}. Starts from {facts.start}.",
        state_line(facts),
    ]
    lines = "".join(f"<p>{html.escape(text)}</p>" for text in told if text)
    question = f'<p class="question">{html.escape(facts.question)}</p>' if facts.question else ""
    caution = f'<p class="caution">{html.escape(advice(facts))}</p>'
    return (
        f"<header><h1>{html.escape(facts.name)}</h1>{question}"
        f'<p class="headline">{html.escape(headline(facts))}</p>{caution}'
        f'<div class="tiles">{tiles}</div>{lines}</header>'
    )


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 0, below: Iterable[str] = ()
) -> str:
    """Rows of text; `numbers` columns behind the first are set to the right; `below`: a line under each row.
    A wide one scrolls."""

    def cell(tag: str, k: int, text: str) -> str:
        side = ' class="number"' if 0 < k <= numbers else ""
        return f"<{tag}{side}>{html.escape(text)}</{tag}>"

    def whole(row: Sequence[str], under: str | None) -> str:
        cells = "".join(cell("td", k, text) for k, text in enumerate(row))
        if under is None:
            return f"<tr>{cells}</tr>"
        rest = f'<td></td><td colspan="{len(heads) - 1}"><div>{html.escape(under)}</div></td>'
        return f'<tr class="upper">{cells}</tr><tr class="below">{rest}</tr>'

    top = "".join(cell("th", k, text) for k, text in enumerate(heads))
    lines = itertools.zip_longest(rows, below) if below else ((row, None) for row in rows)
    body = "".join(whole(row, under) for row, under in lines)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def leaderboard(facts: Facts) -> str:
    """A line of numbers for each of the best, and its legality and techniques below it."""
    rows = [facts.named(number) for number in facts.best[:TOP]]
    fresh = ["fresh seeds"] if any(trial.confirmed for trial in rows) else []
    beliefs = any(trial.believed is not None for trial in rows)
    believed = ["believed"] if beliefs else []
    limits = [f"{lim.label}, {lim.unit}" for lim in facts.limits]
    heads = ["trial", "BPB", *believed, *fresh, *limits]
    text = "The best that keep all limits; below each its legality and its techniques. "
    text += "! = on, but changed nothing; ? = has findings, below. "
    text += f"{ranking_text(beliefs=True, confirmed=bool(fresh))} " if beliefs else ""
    text += unsound_text(trial.confirmed for trial in rows)
    body = table(
        heads,
        [row_of(facts, t, fresh=bool(fresh), beliefs=beliefs) for t in rows],
        numbers=len(heads) - 1,
        below=[f"{trial.legality} · {techniques(trial)}" for trial in rows],
    )
    return section("Leaderboard", text, body if rows else "")


def row_of(facts: Facts, trial: TrialFacts, *, fresh: bool, beliefs: bool) -> list[str]:
    mark = "?" if trial.findings else ""
    shown = [measured(trial.figures.get(limit.figure), limit.unit) for limit in facts.limits]
    bpb = "" if trial.bpb is None else f"{trial.bpb:.4f}{mark}"
    believed = ["" if trial.believed is None else f"{trial.believed:.4f}"] if beliefs else []
    seeds = [trial.confirmed] if fresh else []
    return [f"#{trial.number}", bpb, *believed, *seeds, *shown]


def techniques(trial: TrialFacts) -> str:
    return ", ".join(f"{t}!" if t in trial.inactive else t for t in trial.techniques) or "no technique"


def measured(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:,.1f}" if unit == "s" else f"{value:,.0f}"


def budgets(facts: Facts, draws: Drawings) -> str:
    """How much of each limit the best trials use, and BPB over each."""
    rows = "".join(bars_of(facts, facts.named(number)) for number in facts.best[:BARS])
    heads = "".join(f"<th>{html.escape(limit.label)}</th>" for limit in facts.limits)
    bars = (
        f'<div class="wide"><table class="bars"><thead><tr><th>trial</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        if rows
        else ""
    )
    drawn = [draws.add(figures.against(facts, limit)) for limit in facts.limits]
    pairs = f'<div class="pair">{"".join(drawn)}</div>' if any(drawn) else ""
    return section(
        "Budgets",
        "What the best trials use of each limit, and what is left. In the figures the red line is the limit.",
        bars + pairs,
    )


def bars_of(facts: Facts, trial: TrialFacts) -> str:
    cells: list[str] = []
    for limit in facts.limits:
        value = trial.figures.get(limit.figure)
        share = 0.0 if value is None else value / limit.most
        text = "not known" if value is None else used_text(limit, value)
        kind = "over" if share > 1.0 else "near" if share > 0.95 else "room"
        width = f"{100 * min(1.0, share):.1f}%"
        cells.append(
            f'<td><div class="bar"><i class="{kind}" style="width:{width}"></i></div>{html.escape(text)}</td>'
        )
    return f"<tr><td>#{trial.number}</td>{''.join(cells)}</tr>"


def used_text(limit: LimitFacts, value: float) -> str:
    """256,481 bytes, 83%; 53,519 left."""
    left = limit.most - value
    slack = f"{measured(abs(left), limit.unit)} {'left' if left >= 0 else 'over'}"
    return f"{measured(value, limit.unit)} {limit.unit}, {value / limit.most:.0%}; {slack}"


def effects_section(facts: Facts, draws: Drawings) -> str:
    found = facts.effects
    if found is None:
        return section("Effects", facts.no_effects, " ")
    text = (
        f"From the newest {found.trials} complete trials, averaged over what was tried; bars are 95 % "
        f"intervals. {EFFECTS_CAUTION}"
    )
    parts: list[str] = []
    for title, effects in all_effects(found).items():
        drawn = draws.add(figures.forest(effects, title))
        if drawn:
            parts.append(f"<h3>{html.escape(title)}</h3>{drawn}{more_effects(effects)}")
    if not found.pairs:
        parts.append("<p>No pair does more or less than the sum of both beyond doubt.</p>")
    return section("Effects", text, "".join(parts))


def more_effects(effects: Sequence[Effect]) -> str:
    rest = effects[figures.ROWS :]
    if not rest:
        return ""
    rows = [
        [e.name, f"{e.mean:+.4f}", f"{e.low:+.4f} to {e.high:+.4f}", str(e.trials), e.verdict] for e in rest
    ]
    heads = ["", "effect", "95 % interval", "trials", "verdict"]
    return f"<details><summary>{len(rest)} more, less sure</summary>{table(heads, rows, numbers=3)}</details>"


def confirmed(facts: Facts, draws: Drawings) -> str:
    """What `confirm` and `compare` found."""
    body = ""
    if facts.groups:
        text = "Mean and standard deviation of what ran again. A search value is one seed's, and lucky."
        text += f" {unsound_text(group.text for group in facts.groups)}"
        body += f"<h3>Fresh seeds</h3><p>{text}</p>{draws.add(figures.groups(facts))}{groups_table(facts)}"
    if facts.compared:
        told = "".join(f"<li>{html.escape(one.sentence)}</li>" for one in facts.compared)
        text = "Answers of <code>compare</code> in this home, the newest first."
        body += f"<h3>Compared</h3><p>{text}</p>{draws.add(figures.comparisons(facts))}<ul>{told}</ul>"
    return section("What was confirmed", "Pre-registered seeds that no search has seen.", body)


def groups_table(facts: Facts) -> str:
    heads, rows = group_rows(facts)
    return table(heads, rows, numbers=4)


def ablation_section(facts: Facts, draws: Drawings) -> str:
    """A configuration taken apart: its techniques, the pairs that matter, its chain over seeds."""
    told = facts.ablation
    if told is None:
        return ""
    text = (
        f"{told.seeds_text}; what a technique does is BPB with it less BPB without it. The "
        "figure starts where the effects would add up to; pairs tell where they do not. Intervals hold for "
        "all rows and looks at once: they are wider than what “no difference”, a test of its own, needs."
    )
    body = draws.add(figures.ablation(facts))
    heads, rows = change_rows(told.changes)
    body += table(heads, rows, numbers=4)
    if told.pairs:
        heads, rows = pair_rows(told.pairs)
        body += f"<h3>Pairs, beyond the sum of both</h3>{table(heads, rows, numbers=2)}"
    if told.chain:
        links = [[stage, f"{mean:.4f}", "" if sd is None else f"{sd:.4f}"] for stage, mean, sd in told.chain]
        body += f"<h3>BPB chain over the seeds</h3>{table(['stage', 'BPB', 'sd'], links, numbers=2)}"
    body += "".join(f"<p>{html.escape(sentence)}</p>" for sentence in told.sentences)
    return section(f"Ablation of {told.label}", text, body)


def time_section(facts: Facts, draws: Drawings) -> str:
    """What the trials cost, known workers or not."""
    drawn = draws.add(figures.timeline(facts))
    text = f"{money_line(facts)}{' One bar a trial.' if drawn else ''}"
    return section("Time", text, drawn or " " * bool(facts.hours()))


def winner(facts: Facts) -> str:
    if not facts.best:
        return ""
    rows = [[name, value] for name, value in facts.winner.items()]
    body = f"<pre>{html.escape(facts.repeat)}</pre>"
    settings = table(["setting", "value"], rows)
    body += f"<details><summary>its {len(rows)} sampled settings</summary>{settings}</details>"
    return section(f"The best, #{facts.best[0]}", "To run it again:", body)


def audit(facts: Facts) -> str:
    """Findings of the trainer's own audit, and the legality of what was tried."""
    found = [[f"#{t.number}", text] for t in facts.trials for text in t.findings]
    rows = table(["trial", "finding"], found[:100]) if found else "<p>No trial has a finding.</p>"
    legal = table(["legality", "trials"], legality_rows(facts), numbers=1)
    return section("Audit", "What a person should look at before believing a number.", rows + legal)
