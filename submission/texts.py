"""readme(evidence), as_json(evidence): what a submission says of itself, from resolved settings and results.

Keys of submission.json are those that most of the challenge's records have; `bytes_total` is the largest of
the seeds, `seed_results` holds each seed's, with the hash of its packed model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from claims.confirm import MARGIN_NATS, RULE_P
from claims.runs import number
from search.study.limits import Limit
from submission.clean import Launch
from submission.evidence import SHOWN_LIMITS, Evidence, SeedRun
from submission.tracks import folder_of, of_the_challenge, over_limit, scale, tolerance, track_of
from techniques.base import Technique
from techniques.config import read_preset

Row = Sequence[object]


@dataclass(frozen=True)
class Shipped:
    """What stands in the folder beside its texts."""

    launch: Launch
    files: Mapping[str, str]  # name -> what it is
    sidecars: Sequence[str] = ()  # of CaseOps data, which lie with the data


def table(head: Row, rows: Sequence[Row], *, numbers: int = 0) -> list[str]:
    """Markdown; the last `numbers` columns stand to the right."""
    bars = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, bars, *rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def readme(e: Evidence, shipped: Shipped) -> str:
    """README.md of the folder."""
    mean, sd = e.mean_sd("val_bpb")
    largest = max(map(e.bytes_of, e.scored), default=0)
    n = len(e.scored)
    of = f"mean of {n} seeds, standard deviation {sd:.5f}" if n > 1 else "one seed"
    head = [
        f"# {e.about.name}",
        "",
        f"**val_bpb {mean:.5f}** ({of}) · {largest:,} bytes at most · "
        f"track {e.about.track} · {e.about.author}, {e.about.date}",
        "",
        scale(e),
    ]
    parts = {
        "Results": _results(e),
        "Against the record": _against(e),
        "Components": _components(e),
        "Settings": _settings(e),
        "Where the score comes from": _chain(e),
        "Compliance": [f"- {line}" for line in _compliance(e)],
        "Run it again": _again(e, shipped),
        "Files": [f"- `{name}`: {what}" for name, what in shipped.files.items()],
    }
    body = [line for title, lines in parts.items() if lines for line in ("", f"## {title}", "", *lines)]
    return "\n".join([*head, *body]) + "\n"


def _results(e: Evidence) -> list[str]:
    names = ("val_bpb", "val_loss", "steps", "train_seconds", "eval_seconds")
    formats = ("{:.5f}", "{:.5f}", "{:,.0f}", "{:.1f}", "{:.1f}")
    head = (
        "seed",
        "val_bpb",
        "val_loss, nats",
        "steps",
        "training, s",
        "evaluation, s",
        "script + model, bytes",
    )
    rows = list[Row]()
    for run in e.runs:
        if run.reason:
            rows.append((run.seed, run.reason, *[""] * 5))
            continue
        told = [text.format(run.of(name)) for name, text in zip(names, formats, strict=True)]
        model = int(run.result["model_bytes"])
        rows.append((run.seed, *told, f"{len(e.script):,} + {model:,} = {e.bytes_of(run):,}"))
    means = [text.format(e.mean_sd(name)[0]) for name, text in zip(names, formats, strict=True)]
    rows.append(("**mean**", *means, f"{round(fmean(map(e.bytes_of, e.scored))):,}"))
    return [
        *table(head, rows, numbers=6),
        "",
        f"The seeds follow from a hash of the question (settings, code, data, machine; {e.about.plan}) that "
        f"was written down before the first run, and all of them are in the table. On a CPU seconds "
        "are the processor's.",
    ]


def _against(e: Evidence) -> list[str]:
    test = e.test
    if test is None:
        return []
    rule = f"better by {MARGIN_NATS} nats per token at p < {RULE_P}"
    over = any(over_limit(e, run, limit) for run in e.scored for limit in SHOWN_LIMITS)
    answer = "does not hold" if over or not test.holds else "holds"
    lines = [
        f"Result: {test.sentence()}. The challenge's rule ({rule}) **{answer}**"
        f"{': a limit is not kept (Compliance)' if over else ''}.",
    ]
    if test.kind == "paired":
        scores = ", ".join(f"{bpb:.5f}" for bpb in test.scores)
        lines += ["", f"{test.reference} ran here on the same seeds, in the same order: val_bpb {scores}."]
    return lines + (["", test.note] if test.note else [])


def _components(e: Evidence) -> list[str]:
    c = e.resolved.config
    params = int(e.first.get("params") or 0)
    heads = f"{c.num_heads} heads ({c.num_kv_heads} for keys and values)"
    model = (
        f"{c.num_layers} layers of {c.model_dim}, {heads}, MLP {c.mlp_mult:g}, vocabulary {c.vocab_size:,}; "
        f"{params:,} parameters"
    )
    budget = f"{c.train_batch_tokens:,} tokens a step in sequences of {c.train_seq_len:,}"
    rows: list[Row] = [
        ("model", model, source_of(e, "num_layers", "model_dim", "num_heads", "mlp_mult", "vocab_size")),
        ("batch", budget, source_of(e, "train_batch_tokens", "train_seq_len")),
    ]
    for name, technique in e.resolved.techniques.items():
        what = activity(e, name)
        note = "" if what == "active" else f" ({what})"
        rows.append((f"`{name}`{note}", settings_of(technique, name, e) or "none", technique.reference))
    return table(("component", "setting", "source"), rows)


def source_of(e: Evidence, *names: str) -> str:
    """Where these settings are from: `preset X`, the trial or file, the trainer's default."""
    preset = read_preset(e.about.preset) if e.about.preset else {}
    found = list[str]()
    for name in names:
        same = name in preset and preset[name] == e.resolved.values[name]
        told = e.about.where if name in e.resolved.origins else "default"
        found.append(f"preset `{e.about.preset}`" if same else told)
    return ", ".join(dict.fromkeys(found))


def settings_of(technique: Technique, name: str, e: Evidence) -> str:
    """`last_n=2, mode=average` of a technique that is on."""
    own = {k.partition(".")[2]: v for k, v in e.resolved.values.items() if k.startswith(f"{name}.")}
    return ", ".join(f"{k}={v}" for k, v in own.items())


def activity(e: Evidence, name: str) -> str:
    """The audit's verdict over the seeds: active, or why it changed nothing."""
    told = [run.result.get("activity", {}).get(name, {}).get("verdict", "not audited") for run in e.scored]
    odd = [verdict for verdict in told if verdict != "active"]
    return odd[0] if odd else "active"


def _settings(e: Evidence) -> list[str]:
    rows = [(f"`{name}`", value, source_of(e, name)) for name, value in e.settings.items()]
    text = "What differs from the trainer's defaults, techniques apart; the script holds every value."
    return [text, "", *table(("setting", "value", "source"), rows)] if rows else []


def _chain(e: Evidence) -> list[str]:
    """The mean of each link over the seeds, where all have the same links."""
    chains = [dict[str, float](run.result.get("bpb_chain") or ()) for run in e.scored]
    links = list(chains[0]) if chains else list[str]()
    if not links or any(list(chain) != links for chain in chains):
        return []
    means = [fmean(chain[link] for chain in chains) for link in links]
    before = [None, *means[:-1]]
    rows = [
        (link, f"{mean:.5f}", "" if last is None else f"{mean - last:+.5f}")
        for link, mean, last in zip(links, means, before, strict=True)
    ]
    text = "BPB on the tokens of an early report, mean over the seeds: what each stage adds or takes away."
    return [text, "", *table(("after", "val_bpb", "change"), rows, numbers=2)]


def _compliance(e: Evidence) -> Iterator[str]:
    for limit in SHOWN_LIMITS:
        yield _limit_line(e, limit)
    verdicts = {n: t.verdict() for n, t in e.resolved.techniques.items()}
    special = [f"`{n}` {v.verdict} ({v.source})" for n, v in verdicts.items() if v.verdict != "legal"]
    yield f"**Techniques**: {', '.join(special) or 'all legal'}; source of each: Components."
    findings = sorted({told for run in e.scored for told in run.result.get("findings") or ()})
    yield f"**Ledger of reads**: {_reads(e.first)}; findings on all seeds: {'; '.join(findings) or 'none'}."
    scorer = e.resolved.owner("scorer")
    if scorer is None:
        yield "**Score**: plain: each token once, from the tokens before it, by the stored model."
    else:
        claim = "claims" if scorer.strict_prefix else "does not claim"
        order = "left to right inside each document" if scorer.scores_by_document else "left to right"
        sampled = any((r["stage"], r["reader"]) == ("evaluate", "audit") for r in e.first.get("reads") or ())
        again = " Each run scored a sample again with every later token replaced." if sampled else ""
        yield (
            f"**Score**: `{scorer.name}` {claim} a strict prefix (each score from the tokens before it "
            f"alone, a share of a distribution), {order}.{again}"
        )
    yield f"**Legality of each run**: {', '.join(_legal(run) for run in e.scored)}."
    for clean in e.clean:
        yield (
            "**Clean process**: the folder ran again in a process that sees neither project nor environment, "
            f"seed {clean.seed}: val_bpb {clean.val_bpb:.8f}, {clean.script_bytes:,} + {clean.model_bytes:,} "
            f"bytes, packed model {clean.sha256[:16]}…; {tolerance(e)}."
        )


def _limit_line(e: Evidence, limit: Limit) -> str:
    most = e.about.limits.of(limit)
    figures = [float(e.figures(run).get(limit.figure) or 0.0) for run in e.scored]
    over = any(over_limit(e, run, limit) for run in e.scored)
    relaxed = ": over it, which this track allows" if over and not track_of(e.about.track).seconds else ""
    shown = limit.measured(max(figures, default=0.0))
    allowed = f"{limit.allowed(most)} {limit.unit}"
    return f"**{limit.label.capitalize()}**: the largest is {shown}, allowed are {allowed}{relaxed}."


def _legal(run: SeedRun) -> str:
    return f"seed {run.seed} {'legal' if run.result.get('record_legal') is True else 'NOT legal'}"


def _reads(result: Mapping[str, Any]) -> str:
    """`training tokens by train/steps; validation tokens by evaluate/sliding_window`."""
    found = dict[str, list[str]]()
    for entry in result.get("reads") or ():
        if entry["tokens"]:
            found.setdefault(entry["split"], []).append(f"{entry['stage']}/{entry['reader']}")
    names = {"train": "training tokens", "val": "validation tokens"}
    return (
        "; ".join(f"{names.get(split, split)} by {', '.join(who)}" for split, who in found.items()) or "none"
    )


def _again(e: Evidence, shipped: Shipped) -> list[str]:
    own = e.runs[0].seed
    lines = [
        "```bash",
        "pip install -r requirements.txt",
        shipped.launch.line(f"DATA/{e.data_name}"),
        "```",
        "",
        f"`DATA/{e.data_name}` is the folder of the shards (data id {e.first.get('data_id')}). The script "
        f"holds seed {own}; `SEED=` takes another one. It writes `train.log` and `artifact.bin`.",
    ]
    if shipped.sidecars:
        names = ", ".join(f"`{name}`" for name in shipped.sidecars)
        lines += ["", f"CaseOps: the data's folder must hold the bytes of each validation token: {names}."]
    return lines


def summary(e: Evidence) -> str:
    """One line of what it is."""
    c = e.resolved.config
    head = f"{c.num_layers} layers of {c.model_dim}, vocabulary {c.vocab_size}"
    parts = [
        head,
        *(f"{n} ({s})" if (s := settings_of(t, n, e)) else n for n, t in e.resolved.techniques.items()),
    ]
    return " + ".join(parts)


def compliance(e: Evidence) -> dict[str, bool]:
    """As submission.json has it."""
    found = dict[str, bool]()
    for limit in SHOWN_LIMITS:
        most = e.about.limits.of(limit)
        megabytes = f"{most / 1e6:g}mb" if most >= 1e6 else f"{most:.0f}_bytes"
        name = f"{limit.constraint}_under_{most:g}s" if limit.unit == "s" else f"artifact_under_{megabytes}"
        found[name] = not any(over_limit(e, run, limit) for run in e.scored)
    scorer = e.resolved.owner("scorer")
    legal = [run.result.get("record_legal") is True for run in e.scored]
    return found | {
        "score_legal": all(legal),
        "strict_prefix": scorer is None or scorer.strict_prefix,
        "three_seeds": len(e.scored) >= 3,
        "all_seeds_reported": True,
        "clean_process_equal": bool(e.clean),
        "better_by_0.005_nats_at_p_0.01": e.test is not None and e.test.holds,
        "challenge_scale": of_the_challenge(e.resolved, e.about.track, e.about.hardware),
    }


def as_json(e: Evidence) -> dict[str, Any]:
    """submission.json."""
    bpb, bpb_sd = e.mean_sd("val_bpb")
    loss, loss_sd = e.mean_sd("val_loss")
    figures = ("val_loss", "val_bpb", "steps", "train_seconds", "eval_seconds", "model_bytes", "sha256")
    by_seed = {
        str(run.seed): {n: run.result.get(n) for n in figures} | {"artifact_bytes": e.bytes_of(run)}
        for run in e.scored
    }
    told: dict[str, Any] = {
        "author": e.about.author,
        "github_id": e.about.github_id,
        "name": e.about.name,
        "blurb": summary(e),
        "date": e.about.date,
        "track": folder_of(e.resolved, e.about.track, e.about.hardware).removeprefix("track_"),
        "val_bpb": bpb,
        "val_bpb_std": number(bpb_sd),
        "val_loss": loss,
        "val_loss_std": number(loss_sd),
        "seeds": [run.seed for run in e.runs],
        "seed_results": by_seed,
        "bytes_total": max(map(e.bytes_of, e.scored)),
        "bytes_code": len(e.script),
        "hardware": e.about.hardware,
        "protocol": e.first.get("protocol"),
        "dataset": e.data_name,
        "data_id": e.first.get("data_id"),
        "pytorch_version": e.first.get("torch"),
        "technique_summary": summary(e),
        "attribution": {name: t.reference for name, t in e.resolved.techniques.items()},
        "compliance": compliance(e),
    }
    if e.test is not None:
        told["record"] = {
            "reference": e.test.reference,
            "kind": e.test.kind,
            "difference_nats": number(e.test.mean),
            "p_value": e.test.p,
            "note": e.test.note,
        }
    return told
