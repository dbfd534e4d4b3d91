"""The figures of a report, each a dict of `data` and `layout` as Plotly takes it; None where there is nothing
to draw. https://plotly.com/javascript/reference
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from pages.facts import (
    FAILED,
    FEASIBLE,
    INTERRUPTED,
    OVER,
    PRUNED,
    RUNNING,
    WAITING,
    Facts,
    LimitFacts,
    TrialFacts,
    all_effects,
    pareto,
)
from search.report.effects import Effect

Figure = dict[str, Any]
COLOURS = {
    FEASIBLE: "#2563eb",
    OVER: "#d97706",
    PRUNED: "#94a3b8",
    FAILED: "#dc2626",
    INTERRUPTED: "#7c3aed",
    RUNNING: "#0891b2",
    WAITING: "#64748b",
}
BEST = "#059669"
GRID = "#e2e8f0"
INK = "#1e293b"
QUIET = "#64748b"
PAPER = "rgba(255,255,255,0.8)"  # behind words that stand on a figure
ROWS = 20  # effects in the figure; the table has more
ROW_PX = 24
HEAD_PX = 110
TALLEST_PX = 900
MANY = 40  # curves of one kind from which each is fainter
FAR = 3.0  # interquartile ranges above the median from which a BPB stands at the edge of its figure
VERDICTS = {"helps": BEST, "hurts": COLOURS[FAILED]}  # what is not told is grey
WATERFALL: dict[str, Any] = {
    "decreasing": {"marker": {"color": BEST}},
    "increasing": {"marker": {"color": COLOURS[FAILED]}},
    "totals": {"marker": {"color": COLOURS[FEASIBLE]}},
    "connector": {"line": {"color": QUIET, "width": 1}},
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def base(*, x: str, y: str, height: int = 380, **more: Any) -> dict[str, Any]:
    """A layout: quiet grid, legend above, titles of the axes."""
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "automargin": True}
    return {
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "height": height,
        "margin": {"l": 60, "r": 20, "t": 40, "b": 50},
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": {**axis, "title": {"text": x}, **more.pop("xaxis", {})},
        "yaxis": {**axis, "title": {"text": y}, **more.pop("yaxis", {})},
        **more,
    }


def line(x: Sequence[float], y: Sequence[float], name: str, colour: str, **more: Any) -> dict[str, Any]:
    style = {"color": colour, "width": 2} | more.pop("line", {})
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "name": name, "line": style, **more}


def dots(trials: Sequence[TrialFacts], x: Sequence[float], y: Sequence[float], state: str) -> dict[str, Any]:
    """Trials of one state; what is no result is hollow."""
    colour = COLOURS[state]
    symbol = {FEASIBLE: "circle", PRUNED: "x-thin-open"}.get(state, "circle-open")
    return {
        "type": "scatter",
        "mode": "markers",
        "x": x,
        "y": y,
        "name": state,
        "text": [hover(t) for t in trials],
        "hoverinfo": "text",
        "marker": {"color": colour, "size": 7, "symbol": symbol, "line": {"width": 1.5, "color": colour}},
        "opacity": 0.8,
    }


def hover(trial: TrialFacts) -> str:
    bpb = "no score" if trial.bpb is None else f"{trial.bpb:.4f} bits/byte"
    techniques = ", ".join(trial.techniques[:8]) + (", …" if len(trial.techniques) > 8 else "")
    told = [f"#{trial.number} {trial.state}", bpb, trial.reason[:90], techniques or "no technique"]
    return "<br>".join(escape(text) for text in told if text)


def escape(text: str) -> str:
    """Plotly reads a few tags in its texts."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def scored(trials: Iterable[TrialFacts], state: str) -> list[TrialFacts]:
    return [t for t in trials if t.state == state and t.bpb is not None]


def edge(values: Sequence[float]) -> float:
    """What a BPB axis ends at: a hopeless run must not press all others into one line."""
    ordered = sorted(values)
    low, middle, high = (ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.25, 0.5, 0.75))
    return min(ordered[-1], middle + FAR * max(high - low, 1e-3))


def bpb_range(values: Sequence[float]) -> list[float]:
    top = edge(values)
    low = min(values)
    pad = 0.06 * max(top - low, 1e-3)
    return [low - pad, top + pad]


def progress(facts: Facts) -> Figure | None:
    """BPB of every trial in order, and the best so far."""
    kinds = {state: scored(facts.trials, state) for state in (FEASIBLE, OVER)}
    kinds[PRUNED] = [t for t in facts.trials if t.state == PRUNED and t.curve]
    values = [y for state in (FEASIBLE, OVER) for t in kinds[state] for y in [cast("float", t.bpb)]]
    if not values:
        return None
    data: list[dict[str, Any]] = []
    for state, trials in kinds.items():
        ys = [t.bpb if t.bpb is not None else t.curve[-1][1] for t in trials]
        name = "pruned, at its last report" if state == PRUNED else state
        shown = [min(y, edge([*values, *start(facts)])) for y in ys]
        data += [dots(trials, [t.number for t in trials], shown, state) | {"name": name}] if trials else []
    xs = list[float]()
    ys = list[float]()
    best = math.inf
    for trial in kinds[FEASIBLE]:
        best = min(best, cast("float", trial.bpb))
        xs.append(trial.number)
        ys.append(best)
    if xs:
        step = line(xs, ys, "best so far", BEST, line={"shape": "hv", "width": 2.5})
        data.append(step)
    layout = base(x="trial", y="bits per byte", yaxis={"range": bpb_range([*values, *start(facts)])})
    if start(facts):
        layout |= level(start(facts)[0], f"start {start(facts)[0]:.4f}")
    return {"data": data, "layout": layout}


def start(facts: Facts) -> list[float]:
    return [float(facts.baseline["val_bpb"])] if facts.baseline else []


def level(y: float, text: str) -> dict[str, Any]:
    """A dashed line across the figure at y, with its name."""
    shape = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y}
    note = {"xref": "paper", "x": 1, "y": y, "text": text, "showarrow": False, "xanchor": "right"}
    return {
        "shapes": [{**shape, "line": {"dash": "dash", "width": 1.5, "color": QUIET}}],
        "annotations": [{**note, "yanchor": "bottom", "font": {"color": QUIET}, "bgcolor": PAPER}],
    }


def against(facts: Facts, limit: LimitFacts) -> Figure | None:
    """BPB over what a limit is on: the limit's line, the slack left of it, the Pareto front."""
    kinds = {s: [t for t in scored(facts.trials, s) if limit.figure in t.figures] for s in (FEASIBLE, OVER)}
    values = [cast("float", t.bpb) for trials in kinds.values() for t in trials]
    if not values:
        return None
    data: list[dict[str, Any]] = []
    for state, trials in kinds.items():
        ys = [min(cast("float", t.bpb), edge(values)) for t in trials]
        data += [dots(trials, [t.figures[limit.figure] for t in trials], ys, state)] if trials else []
    front = pareto(facts.trials, limit.figure)
    xs = [t.figures[limit.figure] for t in front]
    ys = [min(cast("float", t.bpb), edge(values)) for t in front]
    data += [line(xs, ys, "Pareto front", BEST, line={"shape": "hv"})] if len(front) > 1 else []
    layout = base(x=f"{limit.label}, {limit.unit}", y="bits per byte", yaxis={"range": bpb_range(values)})
    layout["xaxis"] |= {"rangemode": "tozero"} if limit.unit == "s" else {}
    rule = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": limit.most, "x1": limit.most}
    note = {"yref": "paper", "y": 0.98, "x": limit.most, "text": "limit", "showarrow": False}
    layout["shapes"] = [{**rule, "line": {"width": 2, "color": COLOURS[FAILED]}}]
    layout["annotations"] = [{**note, "xanchor": "right", "xshift": -4, "font": {"color": COLOURS[FAILED]}}]
    return {"data": data, "layout": layout}


def curves(facts: Facts) -> Figure | None:
    """Early BPB over steps: one thin line a trial, pruned ones to where they ended, the best on top."""
    best = facts.best[0] if facts.best else -1
    there = [t for t in facts.trials if len(t.curve) > 1 and t.number != best]
    ends = [t.curve[-1][1] for t in facts.trials if t.curve]
    if not ends or not any(len(t.curve) > 1 for t in facts.trials):
        return None
    data: list[dict[str, Any]] = []
    for state in (PRUNED, OVER, FEASIBLE):
        trials = [t for t in there if t.state == state]
        xs: list[float | None] = [x for t in trials for x in (*(p[0] for p in t.curve), None)]
        ys: list[float | None] = [y for t in trials for y in (*(p[1] for p in t.curve), None)]
        thin = {"color": COLOURS[state], "width": 1}
        drawn = {"type": "scatter", "mode": "lines", "x": xs, "y": ys, "line": thin, "hoverinfo": "skip"}
        faint = min(0.6, max(0.12, MANY / max(1, len(trials))))
        data += [drawn | {"name": state, "opacity": faint}] if trials else []
    stopped = [t for t in facts.trials if t.state == PRUNED and t.curve]
    if stopped:
        at = [t.curve[-1] for t in stopped]
        data.append(dots(stopped, [p[0] for p in at], [p[1] for p in at], PRUNED) | {"name": "given up here"})
    if best >= 0 and (points := facts.named(best).curve):
        xs_ = [p[0] for p in points]
        ys_ = [p[1] for p in points]
        data.append(line(xs_, ys_, f"best, #{best}", BEST, line={"width": 3}))
    firsts = [t.curve[0][1] for t in facts.trials if t.curve]
    low = min(ends)
    top = max(edge(firsts), max(min(ends), edge(ends)))
    pad = 0.06 * max(top - low, 1e-3)
    layout = base(x="step", y="bits per byte", yaxis={"range": [low - pad, top + pad]})
    return {"data": data, "layout": layout}


def forest(effects: Sequence[Effect], title: str) -> Figure | None:
    """Effects with their intervals, the surest on top."""
    shown = list(reversed(effects[:ROWS]))
    if not shown:
        return None
    colours = {"helps": BEST, "hurts": COLOURS[FAILED], "not told": COLOURS[PRUNED]}
    data: list[dict[str, Any]] = []
    for verdict, colour in colours.items():
        rows = [e for e in shown if e.verdict == verdict]
        if rows:
            wide = [e.high - e.mean for e in rows], [e.mean - e.low for e in rows]
            bars = {
                "type": "data",
                "array": wide[0],
                "arrayminus": wide[1],
                "color": colour,
                "thickness": 1.5,
            }
            names = [short_name(e.name) for e in rows]
            text = [f"{escape(e.name)}<br>{e.mean:+.4f} ({e.low:+.4f} to {e.high:+.4f})" for e in rows]
            told = {"text": text, "hoverinfo": "text", "marker": {"color": colour, "size": 9}}
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [e.mean for e in rows],
                    "y": names,
                    "error_x": bars,
                }
                | {"name": verdict, **told}
            )
    order = {"categoryorder": "array", "categoryarray": [short_name(e.name) for e in shown]}
    height = min(TALLEST_PX, HEAD_PX + ROW_PX * len(shown))
    x = "change of BPB; negative is better"
    layout = base(x=x, y="", height=height, yaxis={**order, "title": {"text": ""}})
    layout["xaxis"] |= {"zeroline": True, "zerolinecolor": QUIET, "rangemode": "tozero"}
    return {"data": data, "layout": layout, "title": title}


def short_name(name: str, most: int = 44) -> str:
    """At most `most` characters; what a setting went from and to stays, its name is cut."""
    first, space, change = name.partition(" ")
    room = most - len(space + change) - 1
    if len(name) > most:
        name = f"{first[:room]}…{space}{change}" if most // 4 < room < len(first) else f"{name[: most - 1]}…"
    return escape(name)


def chain(facts: Facts) -> Figure | None:
    """What each stage behind training did to the best trial's BPB, on the tokens of a report."""
    links = facts.named(facts.best[0]).chain if facts.best else ()
    if len(links) < 2:
        return None
    values = [bpb for _, bpb in links]
    steps = [values[0], *(new - old for old, new in itertools.pairwise(values))]
    bars = {
        "type": "waterfall",
        "x": [name for name, _ in links],
        "y": steps,
        "measure": ["absolute", *["relative"] * (len(links) - 1)],
        "text": [f"{values[0]:.4f}", *(f"{step:+.4f}" for step in steps[1:])],
        "textposition": "outside",
        "hoverinfo": "x+text",
        **WATERFALL,
    }
    pad = max(0.35 * (max(values) - min(values)), 0.005)
    span = [min(values) - pad, max(values) + pad]
    layout = base(x="", y="bits per byte", yaxis={"range": span}, xaxis={"title": {"text": ""}})
    return {"data": [bars], "layout": layout}


def ablation(facts: Facts) -> Figure | None:
    """From a model without its techniques, if their effects added up, to the configuration that was measured:
    each step is what one does there."""
    told = facts.ablation
    if told is None or told.bpb is None or not told.away:
        return None
    steps = [cast("float", one.mean) for one in told.away]
    levels = list(itertools.accumulate(steps, initial=told.bpb - sum(steps)))
    texts = [
        "" if one.low is None or one.high is None else f"<br>{one.low:+.4f} to {one.high:+.4f}"
        for one in told.away
    ]
    hovers = [
        f"{escape(o.name)} {o.mean:+.4f}{t}<br>{o.verdict}" for o, t in zip(told.away, texts, strict=True)
    ]
    whole = COLOURS[FEASIBLE]
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": ["without them", *(short_name(one.name) for one in told.away), told.label],
        "x": [levels[0], *steps, told.bpb],
        "base": [0.0, *levels[:-1], 0.0],
        "marker": {"color": [whole, *(VERDICTS.get(one.verdict, QUIET) for one in told.away), whole]},
        "text": [f"{levels[0]:.4f}", *(f"{step:+.4f}" for step in steps), f"{told.bpb:.4f}"],
        "textposition": "outside",
        "hovertext": ["if their effects added up", *hovers, f"mean of {told.seeds} seeds"],
        "hoverinfo": "text",
    }
    pad = max(0.18 * (max(levels) - min(levels)), 0.005)
    height = min(TALLEST_PX, HEAD_PX + 34 * (len(steps) + 2))
    layout = base(x="bits per byte", y="", height=height)
    layout["xaxis"] |= {"range": [min(levels) - pad, max(levels) + pad]}
    layout["yaxis"] |= {"autorange": "reversed", "title": {"text": ""}}
    return {"data": [bars], "layout": layout}


def comparisons(facts: Facts) -> Figure | None:
    """What `compare` answered, with its intervals."""
    return forest([effect for one in facts.compared if (effect := one.effect) is not None], "compared")


def all_figures(facts: Facts) -> dict[str, Figure]:
    """By their titles, for a page that has no text of its own."""
    found = {"Progress": progress(facts)}
    found |= {f"BPB against {limit.label}": against(facts, limit) for limit in facts.limits}
    for title, effects in all_effects(facts.effects).items() if facts.effects else ():
        found[f"Effects: {title}"] = forest(effects, title)
    found |= {"Learning curves": curves(facts), "Fresh seeds": groups(facts)}
    found |= {"Compared": comparisons(facts), "Ablation": ablation(facts), "BPB chain": chain(facts)}
    found |= {"What broke": reasons(facts), "Workers": timeline(facts)}
    return {title: figure for title, figure in found.items() if figure is not None}


def groups(facts: Facts) -> Figure | None:
    """Configurations on fresh seeds, and what the search had said of each."""
    there = [g for g in facts.groups if g.bpb is not None]
    if not there:
        return None
    names = [g.label for g in there]
    spread = {"type": "data", "array": [g.sd or 0.0 for g in there], "color": BEST}
    marker = {"color": BEST, "size": 10}
    fresh = {"type": "scatter", "mode": "markers", "x": names, "y": [g.bpb for g in there], "error_y": spread}
    found = {"type": "scatter", "mode": "markers", "x": names, "y": [g.search_bpb for g in there]}
    open_ = {"color": COLOURS[FEASIBLE], "size": 9, "symbol": "diamond-open", "line": {"width": 2}}
    data: list[dict[str, Any]] = [
        fresh | {"name": "fresh seeds, mean ± sd", "marker": marker},
        found | {"name": "search value, one seed", "marker": open_},
    ]
    layout = base(x="trial", y="bits per byte", xaxis={"type": "category"})
    return {"data": data, "layout": layout}


def timeline(facts: Facts) -> Figure | None:
    """Which worker ran which trial when."""
    there = [t for t in facts.trials if t.worker and t.seconds > 0.0]
    if not there:
        return None
    zero = min(cast("float", t.began_s) for t in there)
    workers = {name: f"worker {k}" for k, name in enumerate(sorted({t.worker for t in there}))}
    span = max(cast("float", t.ended_s) for t in there) - zero
    unit, seconds = ("hours", 3600.0) if span > 3 * 3600 else ("minutes", 60.0)
    data: list[dict[str, Any]] = []
    for state, colour in COLOURS.items():
        trials = [t for t in there if t.state == state]
        if trials:
            begin = [(cast("float", t.began_s) - zero) / seconds for t in trials]
            marker = {"color": colour, "line": {"color": "#ffffff", "width": 0.5}}
            data.append(
                {"type": "bar", "orientation": "h", "base": begin, "x": [t.seconds / seconds for t in trials]}
                | {"y": [workers[t.worker] for t in trials], "name": state, "marker": marker}
                | {"text": [hover(t) for t in trials], "textposition": "none", "hoverinfo": "text"}
            )
    height = min(TALLEST_PX, HEAD_PX + 40 + 26 * len(workers))
    layout = base(x=f"{unit} since the first trial", y="", height=height, barmode="overlay")
    layout["yaxis"] |= {"categoryorder": "array", "categoryarray": list(reversed(workers.values()))}
    return {"data": data, "layout": layout}


def reasons(facts: Facts) -> Figure | None:
    """Why trials gave no feasible result: by limit and by failure."""
    labels: Mapping[str, str] = {limit.constraint: limit.label for limit in facts.limits}
    counts = [(f"over: {labels.get(n, n)}", c, COLOURS[OVER]) for n, c in facts.over_counts().most_common()]
    counts += [(f"failed: {short_name(n)}", c, COLOURS[FAILED]) for n, c in facts.failures().most_common(10)]
    if not counts:
        return None
    counts.reverse()
    bars = {"type": "bar", "orientation": "h", "x": [c for _, c, _ in counts], "y": [n for n, _, _ in counts]}
    bars |= {"marker": {"color": [colour for _, _, colour in counts]}, "hoverinfo": "x+y", "name": ""}
    height = HEAD_PX + 30 * len(counts)
    layout = base(x="trials", y="", height=height, xaxis={"rangemode": "tozero"})
    layout["xaxis"]["dtick"] = 1 + max(count for _, count, _ in counts) // 10  # whole trials
    return {"data": [bars | {"text": [str(c) for _, c, _ in counts]}], "layout": layout}
