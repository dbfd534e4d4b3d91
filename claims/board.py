"""`search.py leaderboard`: the best of every study of a database, what comparisons measured, and published
results, each with its protocol, hardware, seeds and verdict.

A protocol is what makes two scores comparable: data, tokenizer, scale and limits. Each has a table of its
own, and published results have theirs: nothing is ranked against what was measured otherwise.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from optuna import Study as Stored
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from claims.answers import BYTES
from claims.arms import Arm
from claims.race import mean_sd
from claims.runs import OUTCOME, PLAN
from search.common import attributes as stored
from search.common.console import counted
from search.common.tables import TableConsole, in_nats
from search.report.rows import beliefs_of_study, confirmed_of, ranked
from search.session.shelf import script_of
from search.study.limits import LIMITS
from search.trainers.files import read_result
from search.trainers.trainer import legality_of
from search.workers.prior import PUBLISHED
from techniques import catalog
from techniques.config import TRAINER_FIELDS, read_preset, resolve
from trainer.machine import model_in

THEIRS = "published: runs of others; every row has a protocol of its own, so this is no ranking"
SCORE_NATS = "a loss in nats per token"
CHALLENGE = "8 x H100 (the track's)"
LEAST_PUBLISHED = 9  # rows of theirs, and as many as --top says
VERDICTS = ("confirmed", "believed", "single", "published")  # in this order, and by BPB within each
WIDE = 130  # columns that the table with hardware needs
HEADS = ("configuration", "BPB", "± sd", "seeds", "verdict", "observed", "legality", "hardware")


@dataclass(frozen=True)
class Entry:
    """One line; None and "" where nothing is known."""

    protocol: str
    name: str
    bpb: float  # bits per byte, by its verdict
    sd: float | None
    seeds: int
    verdict: str  # it begins with one of VERDICTS
    observed: float | None  # of the first run
    legality: str
    hardware: str

    @property
    def key(self) -> tuple[int, float]:
        """Its place within its protocol."""
        return VERDICTS.index(self.verdict.partition(",")[0].partition(" ")[0]), self.bpb

    def cells(self) -> list[str]:
        sd = "" if self.sd is None else f"{self.sd:.4f}"
        observed = "" if self.observed is None else f"{self.observed:.4f}"
        seeds = str(self.seeds) if self.seeds else ""
        return [self.name, f"{self.bpb:.4f}", sd, seeds, self.verdict, observed, self.legality, self.hardware]


def print_board(console: Console, studies: Iterable[Stored], home: Path, *, top: int, every: bool) -> None:
    """A table for each protocol, the one with most entries first, and the published ones at the end."""
    ours: list[Entry] = []
    silent: list[str] = []
    for study in studies:
        if study.user_attrs.get(stored.ARCHIVED) and not every:
            continue
        found = entries_of(study, top)
        ours += found
        silent += [] if found else [study.study_name]
    ours += compared(home)
    groups: dict[str, list[Entry]] = {}
    for entry in ours:
        groups.setdefault(entry.protocol, []).append(entry)
    for protocol, entries in sorted(groups.items(), key=lambda group: -len(group[1])):
        print_group(console, protocol, entries)
    theirs = sorted(published(), key=lambda one: one.key)
    shown = len(theirs) if isinstance(console, TableConsole) else LEAST_PUBLISHED + top
    print_group(console, THEIRS, theirs[:shown])
    if more := len(theirs[shown:]):
        console.print(f"and {more} more (--top, or --csv and --json for all)", highlight=False)
    for line in closing(ours, silent):
        console.print(line, highlight=False, markup=False)


def closing(ours: Sequence[Entry], silent: Sequence[str]) -> Iterator[str]:
    """What the tables mean."""
    if len({entry.protocol for entry in ours}) > 1:
        yield "Scores of different protocols do not compare: each has a table of its own."
    yield (
        "confirmed: mean of fresh seeds; believed: the surrogate's posterior mean; single: one seed, and the "
        "best of many is lucky. In this order, each by its BPB."
    )
    if len({vocabulary(entry.protocol) for entry in ours}) > 1:
        yield BYTES
    if silent:
        yield f"Without a feasible trial: {', '.join(silent)}."


def vocabulary(protocol: str) -> str:
    return protocol.partition("; ")[0].partition(", ")[2]


def print_group(console: Console, protocol: str, entries: Sequence[Entry]) -> None:
    plain = isinstance(console, TableConsole)
    wide = plain or console.width >= WIDE
    empty = {head for k, head in enumerate(HEADS) if not any(entry.cells()[k] for entry in entries)}
    empty |= set() if wide else {"hardware", "observed"}
    shown = [head for head in HEADS if plain or head not in empty]
    table = Table(title_justify="left", show_edge=False, pad_edge=False)
    for head in (*shown, "protocol") if plain else shown:
        text = head in ("configuration", "verdict", "legality", "hardware", "protocol")
        table.add_column(head, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for entry in sorted(entries, key=lambda one: one.key):
        cells = dict(zip(HEADS, entry.cells(), strict=True)) | {"protocol": entry.protocol}
        table.add_row(*(escape(cells[column.header]) for column in table.columns))  # pyright: ignore
    console.print(f"\n{protocol}", style="bold", highlight=False, markup=False)
    console.print(in_nats(table) if SCORE_NATS in protocol else table)
    places = dict.fromkeys(entry.hardware for entry in entries if entry.hardware)
    if places and not wide:
        console.print(f"on {'; '.join(places)}", highlight=False, markup=False)


def entries_of(study: Stored, top: int) -> list[Entry]:
    """The best of a study, and what it starts from. [] of another program's, and without a feasible trial."""
    if study.directions != [StudyDirection.MINIMIZE] or stored.STUDY_IDENTITY not in study.user_attrs:
        return []
    trials = study.get_trials(deepcopy=False)
    confirmed = confirmed_of(study, trials)
    beliefs = beliefs_of_study(study, trials)
    good = ranked(trials, confirmed, beliefs)[0]
    protocol = protocol_of(study, good)
    found = [
        _entry_of_trial(study.study_name, protocol, t, confirmed.get(t.number), beliefs.get(t.number))
        for t in good[:top]
    ]
    start = study.user_attrs.get(stored.BASELINE)
    if start and good:
        hardware = str(study.user_attrs.get(stored.HARDWARE, ""))
        name = f"{study.study_name}, its start"
        bpb = float(start["val_bpb"])
        found.append(Entry(protocol, name, bpb, None, 1, "single", bpb, "", hardware))
    return found


def _entry_of_trial(
    name: str, protocol: str, trial: FrozenTrial, facts: Mapping[str, Any] | None, belief: float | None
) -> Entry:
    attrs = trial.user_attrs
    observed = cast("float", trial.value)
    bpb = observed
    sd: float | None = None
    seeds = 1
    verdict = "single"
    if facts and facts["bpb"] is not None:
        bpb = float(facts["bpb"])
        sd = facts["sd"]
        seeds = len(facts["seeds"])
        verdict = "confirmed" if facts["sound"] else "confirmed, but a run failed or is over a limit"
        verdict += f", worse than {facts['beaten_by']}" if facts.get("beaten_by") else ""
    elif belief is not None:
        bpb = belief
        verdict = "believed"
    return Entry(
        protocol=protocol,
        name=f"{name} #{trial.number}",
        bpb=bpb,
        sd=sd,
        seeds=seeds,
        verdict=verdict,
        observed=observed,
        legality=str(attrs.get(stored.LEGALITY, "")),
        hardware=stored.hardware_of(trial),
    )


def protocol_of(study: Stored, trials: Sequence[FrozenTrial]) -> str:
    """data, tokenizer; scale; limits: by what is stored, whatever became of the study's file."""
    identity: Mapping[str, Any] = study.user_attrs[stored.STUDY_IDENTITY]
    limits = limits_text(identity["limits"])
    if "trainer" in identity:
        script = Path(script_of(study.user_attrs) or "a script").name
        labels = {str(label) for t in trials if (label := t.user_attrs.get(stored.PROTOCOL))}
        told = f", its score {', '.join(sorted(labels))}" if labels else ""
        patterns = identity["trainer"].get("score_pattern") or ()
        told += f", {SCORE_NATS}" if patterns and not any("(?P<bpb>" in one for one in patterns) else ""
        return f"{script} of {study.study_name}{told}; {limits}"
    values = {**identity["base"], **identity["fixed"]}
    ids = {str(t.user_attrs.get(stored.PASSPORT, {}).get("data_id") or "") for t in trials}
    gpus = int(identity.get("gpus_per_trial", 1))
    free = identity["free"]
    return f"{data_text(values, ids)}; {scale_text(values, gpus, free)}; {limits}"


def data_text(values: Mapping[str, Any], ids: Iterable[str] = ()) -> str:
    """fineweb10B_sp1024 (2fe19f), 1,024 tokens of fineweb_1024_bpe; the hash of its manifest, where known."""
    known = sorted(found[:6] for found in ids if found)
    data = Path(str(setting_of(values, "data_path"))).name
    tokenizer = Path(str(setting_of(values, "tokenizer_path"))).stem
    told = f" ({', '.join(known)})" if known else ""
    return f"{data}{told}, {int(setting_of(values, 'vocab_size')):,} tokens of {tokenizer}"


def scale_text(values: Mapping[str, Any], gpus: int, free: Iterable[str] = ()) -> str:
    """What a run may take: `600 s on 8 GPUs`, or `100 steps of 1,024 tokens`."""
    seconds = float(setting_of(values, "max_wallclock_seconds") or 0.0)
    if seconds and "max_wallclock_seconds" not in free:
        return f"{seconds:g} s" + (f" on {gpus} GPUs" if gpus > 1 else "")
    names = {"iterations": "steps of", "train_batch_tokens": "tokens"}
    parts = ["any" if n in free else f"{int(setting_of(values, n)):,}" for n in names]
    return " ".join(f"{part} {what}" for part, what in zip(parts, names.values(), strict=True))


def setting_of(values: Mapping[str, Any], name: str) -> Any:
    return values.get(name, TRAINER_FIELDS[name].default)


def limits_text(declared: Mapping[str, float]) -> str:
    told = list[str]()
    for limit in LIMITS:
        if limit.baselines in declared:
            told.append(f"{declared[limit.baselines]:g} × the start's {limit.label}")
        elif limit.name in declared:
            told.append(limit.phrase.format(limit.allowed(declared[limit.name])))
    return f"limits {', '.join(told)}"


def compared(home: Path) -> Iterator[Entry]:
    """The arms of every comparison under `home`, with two scores at least."""
    for path in sorted((home / "runs" / "compare").glob(f"*/{PLAN}")):
        question = json.loads(path.read_text(encoding="utf-8"))["question"]
        for label, arm in question["arms"].items():
            values = arm["values"]
            folder = path.parent / Arm(label, "", {}, 0).folder
            runs = [run for found in sorted(folder.glob(f"*/{OUTCOME}")) if (run := read_result(found))]
            scores = [float(run["figures"]["val_bpb"]) for run in runs if not run["reason"]]
            if len(scores) < 2:
                continue
            failed = len(runs) - len(scores)
            mean, sd = mean_sd(scores)
            yield Entry(
                protocol=f"{data_text(values)}; {scale_text(values, 1)}; no limits (compare)",
                name=label,
                bpb=mean,
                sd=sd,
                seeds=len(scores),
                verdict=f"confirmed, {failed} failed" if failed else "confirmed",
                observed=None,
                legality="",
                hardware=machine_text(question.get("machine") or {}),
            )


def machine_text(machine: Mapping[str, Any]) -> str:
    """AMD EPYC, 1 thread; 8 x NVIDIA H200: a plan's machine without its instruction sets."""
    if gpus := machine.get("gpus"):
        return f"{machine.get('ranks', 1)} x {', '.join(map(str, gpus))}"
    model = model_in(str(machine.get("cpu", "")))
    return f"{model}, {counted(int(machine.get('threads') or 1), 'thread')}" if model else ""


def published() -> Iterator[Entry]:
    """What others measured: studies/published.json."""
    for one in json.loads(PUBLISHED.read_text(encoding="utf-8"))["result"]:
        settings = one.get("settings", {})
        preset = str(one["preset"])
        trust = str(one.get("trust", ""))  # what stands behind it, as the file's head says
        doubt = ", disputed" if trust == "disputed" else ""
        layers = {"preset": read_preset(preset), "file": settings}
        yield Entry(
            protocol=THEIRS,
            name=f"{preset}: {one['protocol']} ({one['source']}){doubt}",
            bpb=float(one["val_bpb"]),
            sd=one.get("sd"),
            seeds=int(one["seeds"]),
            verdict=f"published, {trust}" if trust else "published",
            observed=None,
            legality=legality_of(resolve(layers, catalog.metadata())),
            hardware=str(one.get("hardware", CHALLENGE)),
        )
