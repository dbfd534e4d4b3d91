"""What a trial costs beside its work in a large study, and how long the command line takes to read one.

    python -m benchmarks.scale                      # 2,000 trials, 16 workers, 60-s trials for two rounds
    python -m benchmarks.scale --trials 10000 --workers 0

Fills the laptop study's space with finished trials in a private database, times `search.py status`, `best`
and `show` and the dashboard, then lets workers run simulated trials at the real rate: asks, samples, reports,
stores and tells are real, only the trainer is a pause. Prints wall and CPU milliseconds and SQL statements
for each part, medians and 90th percentiles over trials, PostgreSQL's CPU apart; --json writes them. --reader
times Optuna's own reader of the same trials beside ours.

    python -m benchmarks.scale --growth [--write]

tells instead how CPU seconds grow: of a training step over tokens, layers, width, sequence and techniques,
around a model of the laptop's kind and random tokens, one thread; of the search's own part of a trial over
finished trials and workers. --write puts the tables into docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial
from sqlalchemy import Connection, Engine, event, text

from search.common.options import WorkerSpec
from search.common.paths import ROOT
from search.costs import bills as costs
from search.costs.preflight import Preflight
from search.samplers.admission import draw_all, examine
from search.session.session import Session, open_session
from search.space.native import build_space
from search.space.space import Space
from search.storage.bulk import Batch
from search.storage.patient import open_storage, side_engine
from search.study.load import find_study
from search.trainers.files import Record
from search.trainers.process import Job, Outcome
from search.workers import worker as worker_module
from search.workers.worker import Worker
from techniques import catalog
from techniques.base import Hyper, claims
from techniques.config import Resolved, resolve
from tests.search.db_helpers import server_pids, server_place

DOC = ROOT / "docs" / "scale.md"
BEGIN = "<!-- growth: written by benchmarks.scale -->\n"
END = "<!-- growth ends -->\n"
BASE = {
    "vocab_size": 1024,
    "num_layers": 3,
    "model_dim": 64,
    "num_heads": 2,
    "num_kv_heads": 2,
    "mlp_mult": 3.0,
    "train_seq_len": 256,
    "train_batch_tokens": 1024,
    "micro_batches": 1,
    "num_threads": 1,
    "device": "cpu",
}
AXES = {  # what grows -> (its settings from a size, sizes, why the cost grows so)
    "tokens of a step": (
        lambda n: {"train_batch_tokens": n},
        (1024, 2048, 4096, 8192, 16384),
        "every token passes every matrix once; the optimiser's part does not grow",
    ),
    "layers": (
        lambda n: {"num_layers": n},
        (2, 4, 8, 16),
        "a layer costs what the one before it did; embedding, head and softmax are there once",
    ),
    "width": (
        lambda n: {"model_dim": n, "num_heads": n // 32, "num_kv_heads": n // 32},
        (64, 128, 256, 512),
        "matrices and Newton–Schulz grow with its square and cube, norms and the softmax do not",
    ),
    "sequence": (
        lambda n: {"train_seq_len": n, "train_batch_tokens": 4096},
        (128, 256, 512, 1024, 2048),
        "4,096 tokens a step throughout; only attention's products grow with it",
    ),
}
TECHNIQUES = (0, 5, 10, 20)
TECHNIQUES_WHY = "each adds operations of its own, whatever else is on"
TRIALS = (100, 400, 1600)
WORKERS = (1, 4)
TRIALS_WHY = "a worker reads the history once, before these trials; its surrogate learns from at most 400"
WORKERS_WHY = "each trial reads what the others told since the worker's last one: a few rows"
PARTS = ("ask", "sample", "report", "store", "tell")
BUDGET_MS = 600.0  # 1 % of a trial of 60 s
DRAWS = 400  # distinct configurations; the rest differ from one of them in their learning rates
NEW_TRIAL = """
insert into trials (number, study_id, state, datetime_start, datetime_complete)
values (:number, :study, 'RUNNING', now(), now()) returning trial_id"""
FINISH = """
with value as (insert into trial_values (trial_id, objective, value, value_type) values (:t, 0, :v, 'FINITE'))
update trials set state = 'COMPLETE' where trial_id = :t"""


def study_file(folder: Path) -> Path:
    """The laptop study with limits in seconds, so that no baseline has to be measured."""
    found = (ROOT / "studies" / "laptop.toml").read_text(encoding="utf-8")
    changed = found.replace('name = "laptop"', 'name = "scale"')
    changed = changed.replace("train_baselines = 1.4", "train_seconds = 1000.0")
    changed = changed.replace("eval_baselines = 6.0", "eval_seconds = 1000.0")
    assert changed.count("_seconds = 1000.0") == 2
    path = folder / "scale.toml"
    path.write_text(changed, encoding="utf-8")
    return path


def result_of(resolved: Resolved, rng: np.random.Generator) -> Record:
    """A plausible result: bytes and seconds as the preflight's models have them, with noise."""
    rate = math.log(float(resolved.values["matrix_lr"]) / 0.04)
    bpb = 2.5 + 0.05 * abs(rate) + float(rng.normal(0.0, 0.01))
    figures = {
        "artifact_bytes": 210_000 + int(costs.byte_model().estimate(costs.model_bill(resolved)).value),
        "code_bytes": 210_000,
        "steps": 100,
    }
    layers, width = float(resolved.values["num_layers"]), float(resolved.values["model_dim"])
    seconds = {"train_seconds": 3.0 * layers * width / 64, "eval_seconds": layers * width / 64}
    seconds = {name: value * math.exp(float(rng.normal(0.0, 0.05))) for name, value in seconds.items()}
    passport = {"code_hash": "c" * 16, "data_id": "d" * 16, "torch": "2.9", "device": "cpu", "world_size": 1}
    whole = {"status": "finished", "val_bpb": bpb, "params": 300_000, "true_seconds": 60.0}
    return {**whole, **figures, **seconds, **passport}


def attributes_of(space: Space, params: dict[str, Any], resolved: Resolved) -> dict[str, Any]:
    """What a worker, the sampler, the pruner and the record keep of a trial, whatever its result."""
    overhead = dict.fromkeys(("ask_s", "sample_s", "start_s", "report_s", "store_s", "tell_before_s"), 0.1)
    return {
        "worker": "host:12345:0",
        "config": space.config(params),
        "techniques": list(resolved.techniques),
        "legality": "legal",
        "preflight": {"params": 300_000, "artifact_bytes": 400_000, "train_seconds": 12.0},
        "rejections": {"bytes": 1},
        "outcome": "finished",
        "slack_bytes": 1000,
        "overhead": overhead | {"process_s": 60.0, "share": 0.01},
        **{f"violation_{key}": -0.5 for key in ("bytes", "train", "eval", "run")},
    }


def fill(session: Session, count: int) -> None:
    """`count` complete trials, straight into Optuna's tables."""
    space = build_space(session.study, catalog.metadata())
    rng = np.random.default_rng(0)
    preflight = Preflight(session.study)
    drawn: list[tuple[dict[str, Any], dict[str, Any], Resolved]] = []
    while len(drawn) < min(DRAWS, count):
        params = space.repaired(space.keep_active(draw_all(space, rng)))
        resolved, reason = examine(space, preflight, params)
        if resolved is not None and reason is None:
            drawn.append((params, attributes_of(space, params, resolved), resolved))
    with side_engine(session.url).begin() as connection:
        study = connection.execute(
            text("select study_id from studies where study_name = :n"), {"n": session.study.name}
        ).scalar_one()
        for number in range(count):
            params, attributes, resolved = drawn[number % len(drawn)]
            rates = {name: float(rng.uniform(0.01, 0.15)) for name in ("matrix_lr", "scalar_lr")}
            told = attributes | {"hash": f"{number:016x}", "config": attributes["config"] | rates}
            add(connection, study, number, space, params | rates, told, result_of(resolved, rng))
    with side_engine(session.url).connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("vacuum analyze"))


def add(
    connection: Connection,
    study: int,
    number: int,
    space: Space,
    params: dict[str, Any],
    told: dict[str, Any],
    result: Record,
) -> None:
    """One trial, in five statements."""
    batch = Batch()
    for name, value in params.items():
        dist = space.distributions[name]
        batch.params[name] = (dist.to_internal_repr(value), dist)
    batch.steps = {k: result["val_bpb"] + 1.0 - k / 4 for k in (1, 2, 3)}
    user = told | {
        k: result[k] for k in ("artifact_bytes", "code_bytes", "train_seconds", "eval_seconds", "steps")
    }
    user |= {"passport": {k: result[k] for k in ("code_hash", "data_id", "torch", "device", "world_size")}}
    user |= {"reports": [[k / 4, bpb, 1.0] for k, bpb in batch.steps.items()]}
    batch.user = {key: json.dumps(value) for key, value in user.items()}
    system: dict[str, Any] = {f"constraints:{key}": -0.5 for key in ("bytes", "train", "eval", "run")}
    system |= {"dashboard:note_str:0": "**finished**\n" + "- technique: active\n" * 12}
    system |= {
        f"artifacts:{number}-{k}": json.dumps({"filename": "result.json", "artifact_id": "x" * 36})
        for k in range(4)
    }
    batch.system = {key: json.dumps(value) for key, value in system.items()}
    trial_id = connection.execute(text(NEW_TRIAL), {"number": number, "study": study}).scalar_one()
    batch.write(connection, trial_id)
    connection.execute(text(FINISH), {"t": trial_id, "v": result["val_bpb"]})


class Timed(Worker):
    """A worker that notes wall and CPU seconds and SQL statements of each part."""

    def __init__(self, session: Session, spec: WorkerSpec, out: Path) -> None:
        super().__init__(session, spec)
        self.out, self.rows, self.spent = out, [], {}
        self.statements = 0
        event.listen(Engine, "before_cursor_execute", self.count)
        self.mark = self.now()

    def count(self, *_: Any) -> None:
        self.statements += 1

    def now(self) -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), float(self.statements)

    def note(self, part: str) -> None:
        """What passed since the last mark belongs to `part`."""
        then, self.mark = self.mark, self.now()
        before = self.spent.get(part, (0.0, 0.0, 0.0))
        self.spent[part] = tuple(b + now - t for b, now, t in zip(before, self.mark, then, strict=True))

    def objective(self, trial: Trial) -> float:
        self.note("ask")
        try:
            return super().objective(trial)
        finally:
            self.note("store")

    def after_trial(self, trial: FrozenTrial) -> None:
        self.note("tell")
        super().after_trial(trial)
        self.rows.append(self.spent)
        self.out.write_text(json.dumps(self.rows))
        self.spent, self.mark = {}, self.now()


def simulate(worker: Timed, seconds: float) -> Callable[..., Outcome]:
    """A trainer that only lets the time pass; its reports are real."""
    rng = np.random.default_rng()

    def run(job: Job, *, on_report: Callable[..., str | None], stop: Callable[[], bool]) -> Outcome:
        worker.note("sample")
        job.folder.mkdir(parents=True, exist_ok=True)
        began, reports, pruned, report_s = time.perf_counter(), [], None, 0.0
        config = {k: v for k, v in job.config.items() if k != "preset"}
        result = result_of(resolve({"preset": worker.study.base, "file": config}, catalog.metadata()), rng)
        (job.folder / "result.json").write_text(json.dumps(result))
        for k in (1, 2, 3, 4):
            while time.perf_counter() - began < seconds * k / 4 and not stop():
                time.sleep(0.05)
            worker.note("work")
            if pruned is None and k < 4:
                bpb = result["val_bpb"] + 1.0 - k / 4
                reports.append({"progress": k / 4, "val_bpb": bpb, "lr_scale": 1.0})
                pruned = on_report(reports[-1], tuple(reports))
                worker.note("report")
        if stop():
            raise worker_module.Interrupted("told to stop")
        return Outcome("finished", "", result, tuple(reports), time.perf_counter() - began, report_s)

    return run


def work(arguments: argparse.Namespace) -> None:
    """One worker process: `rounds` trials, the first one `index`/workers of a trial late."""
    home = Path(arguments.home)
    study = find_study(home / "scale.toml")
    session = open_session(study, home=home, storage=None, environ={}, worker=True)
    spec = WorkerSpec(home / "scale.toml", home, target=10**6, index=arguments.work)
    worker = Timed(session, spec, home / f"worker-{arguments.work}.json")
    worker_module.run_trainer = simulate(worker, arguments.seconds)
    time.sleep(arguments.work * arguments.seconds / arguments.workers)
    worker.mark = worker.now()
    worker.should_stop = lambda: len(worker.rows) >= arguments.rounds
    worker.run()


def server_cpu_s(home: Path) -> float:
    """CPU seconds of PostgreSQL so far: the postmaster, its children that ended and those that run."""
    postmaster = server_pids(server_place(home))["postmaster"]
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(stat.parent.name) == postmaster:
            ticks += sum(map(int, fields[11:15]))
        elif int(fields[1]) == postmaster:
            ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def times_of(rows: list[dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """part -> median and 90th percentile of wall and CPU milliseconds, statements on average; `all` is the
    sum of the parts, `work` the statements of the heartbeats."""
    table: dict[str, dict[str, float]] = {}
    for part in (*PARTS, "all", "work"):
        names = PARTS if part == "all" else (part,)
        wall, cpu, statements = (
            [sum(row.get(name, (0.0, 0.0, 0.0))[k] for name in names) for row in rows] for k in range(3)
        )
        ms = {"wall": wall, "cpu": cpu} if part != "work" else {}
        table[part] = {
            **{
                f"{kind}_p{share}_ms": round(1000 * float(np.percentile(seconds, share)), 1)
                for kind, seconds in ms.items()
                for share in (50, 90)
            },
            "statements": round(statistics.fmean(statements), 1),
        }
    return table


def print_table(title: str, table: dict[str, dict[str, float]]) -> None:
    columns = list(table["all"])
    print(f"\n{title}\n{'':8}" + "".join(f"{name.removesuffix('_ms'):>12}" for name in columns))
    for part, row in table.items():
        print(f"{part:8}" + "".join(f"{row.get(name, '-'):>12}" for name in columns))


def time_commands(home: Path) -> dict[str, float]:
    """Wall seconds of commands that read the study, each the quicker of two, interpreter included; `CPU` is
    that of the command alone, without PostgreSQL's."""
    found: dict[str, float] = {}
    for words in (("--help",), ("status",), ("best",), ("show", "7")):
        options = [] if words == ("--help",) else [f"--study={home / 'scale.toml'}", f"--home={home}"]
        command = [sys.executable, str(ROOT / "search.py"), *words, *options]
        seconds: list[tuple[float, float]] = []
        for _ in range(2):
            began, before = time.perf_counter(), os.times().children_user + os.times().children_system
            subprocess.run(command, check=True, capture_output=True)
            spent = os.times().children_user + os.times().children_system - before
            seconds.append((time.perf_counter() - began, spent))
        found[words[0]], found[f"{words[0]} CPU"] = (round(one, 2) for one in min(seconds))
    return found


def time_dashboard(home: Path) -> dict[str, float]:
    """Seconds of `search.py dashboard` from its start: until it prints its address, until the study's page
    has its first /api answer, an open page its next one, the report is there; `CPU` is the process' own by
    then, with the thread that reads the study for note and figures."""
    options = [f"--study={home / 'scale.toml'}", f"--home={home}", "--port=0"]
    command = [sys.executable, str(ROOT / "search.py"), "dashboard", *options]
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    found: dict[str, float] = {}
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def note(part: str) -> None:
        stat = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        found[part] = round(time.perf_counter() - began, 2)
        found[f"{part} CPU"] = round(sum(map(int, stat[11:13])) / os.sysconf("SC_CLK_TCK"), 2)

    try:
        assert process.stdout is not None
        page, _, token = process.stdout.readline().split()[3].partition("?")
        note("address")
        opener.open(f"{page}?{token}").read()
        api = page.replace("/dashboard/", "/api/")
        told = json.loads(opener.open(api).read())
        note("first answer")
        opener.open(f"{api}?after={len(told['trials'])}").read()  # what an open page asks from then on
        note("poll")
        opener.open(f"{page.partition('/dashboard/')[0]}/report").read()
        note("report")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
    return found


def time_readers(session: Session) -> dict[str, float]:
    """CPU milliseconds a trial of this process for reading the whole study: ours and Optuna's own."""
    optunas = RDBStorage(session.url, skip_compatibility_check=True, skip_table_creation=True)
    study = optunas.get_study_id_from_name(session.study.name)
    found: dict[str, float] = {}
    for name, storage in (("ours", open_storage(session.url, worker=True)), ("Optuna's", optunas)):
        began = time.process_time()
        count = len(storage.get_all_trials(study, deepcopy=False))
        found[name] = round(1000 * (time.process_time() - began) / count, 3)
    return found


def run_workers(arguments: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Runs them to their end; the tables of their first trials and of the later ones."""
    shared = [f"--{name}={getattr(arguments, name)}" for name in ("workers", "rounds", "seconds")]
    command = [sys.executable, "-m", "benchmarks.scale", f"--home={home}", *shared]
    before, began = server_cpu_s(home), time.perf_counter()
    processes = [subprocess.Popen([*command, f"--work={k}"], cwd=ROOT) for k in range(arguments.workers)]
    try:
        assert all(process.wait() == 0 for process in processes)
    finally:
        for process in processes:
            process.kill()
    took_s, server_s = time.perf_counter() - began, server_cpu_s(home) - before
    rows = [json.loads((home / f"worker-{k}.json").read_text()) for k in range(arguments.workers)]
    first, later = times_of([own[0] for own in rows]), times_of([row for own in rows for row in own[1:]])
    trials = sum(map(len, rows))
    print_table("a worker's first trial (reads the history)", first)
    print_table(f"its other trials; allowed: {BUDGET_MS:.0f} ms, 1 % of 60 s", later)
    print(f"\nPostgreSQL: {1000 * server_s / trials:.0f} ms CPU a trial; {trials} trials in {took_s:.0f} s")
    return {
        "first": first,
        "later": later,
        "server_cpu_ms": round(1000 * server_s / trials, 1),
        "trials": trials,
    }


def step_ms(settings: dict[str, Any], repeats: int = 3) -> float:
    """CPU milliseconds of a training step on random tokens, the least of `repeats` after one that is not
    counted: forward, backward and both optimisers."""
    import torch

    import train_gpt
    from trainer.muon import Muon
    from trainer.seams import Seams

    resolved = resolve({"file": BASE | settings}, catalog.runtime())
    config = resolved.config
    torch.set_num_threads(1)
    seams = Seams(resolved)
    world = train_gpt.World(config)
    model = train_gpt.build_model(resolved, "cpu", seams)
    owner = seams.owner("muon")
    hyper = seams.chain("hyper", Hyper())
    optimizers = train_gpt.build_optimizers(model, config, hyper, world, owner.muon if owner else Muon)
    optimizers.matrices.orthogonalize = train_gpt.orthogonalizer(seams)
    shape = (config.train_batch_tokens // config.train_seq_len, config.train_seq_len + 1)
    tokens = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    seconds: list[float] = []
    for _ in range(repeats + 1):
        began = time.process_time()
        model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()).backward()
        optimizers.matrices.settle_gradients(model.parameters(), config.grad_clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds.append(time.process_time() - began)
    return 1000 * min(seconds[1:])


def stack_of(count: int) -> dict[str, Any]:
    """The first techniques by name that stand in the model or its optimisers, change no size or number of
    its layers, and go together, `count` of them."""
    from conformance.subject import MODEL_SEAMS

    layer: dict[str, Any] = {}
    for name, technique in sorted(catalog.runtime().items()):
        if len(layer) == count:
            break
        seams = {*claims(technique)}
        if seams & {*MODEL_SEAMS, "hyper", "muon", "orthogonalize"} and not seams & {"sizes", "plan"}:
            try:
                resolve({"file": BASE | layer | {name: True}}, catalog.runtime())
            except ValueError:
                continue
            layer[name] = True
    assert len(layer) == count, f"only {len(layer)} techniques go together"
    return layer


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """b of cost = a·size^b, least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def search_ms(trials: int, workers: int) -> float:
    """CPU milliseconds of the search's own part of a trial, the median of three later ones a worker."""
    with tempfile.TemporaryDirectory(prefix="caddie-growth-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        session = open_session(find_study(study_file(home)), home=home, storage=None, environ={})
        fill(session, trials)
        options = argparse.Namespace(workers=workers, rounds=4, seconds=4.0)
        return float(run_workers(options, home)["later"]["all"]["cpu_p50_ms"])


def row_of(what: str, sizes: Sequence[int], costs: Sequence[float], power: str, why: str) -> str:
    points = ", ".join(f"{size:,}: {cost:,.1f}" for size, cost in zip(sizes, costs, strict=True))
    return f"| {what} | {points} | {power} | {why} |"


def growth() -> str:
    """The tables."""
    rows: list[str] = []
    for what, (settings, sizes, why) in AXES.items():
        costs = [step_ms(settings(size)) for size in sizes]
        last = exponent(sizes[-2:], costs[-2:])
        rows.append(row_of(what, sizes, costs, f"{exponent(sizes, costs):.2f} (last two {last:.2f})", why))
        print(rows[-1], flush=True)
    costs = [step_ms(stack_of(count)) for count in TECHNIQUES]
    each = float(np.polyfit(TECHNIQUES, np.array(costs) / costs[0], 1)[0])
    rows.append(row_of("techniques on", TECHNIQUES, costs, f"+{each:.1%} each", TECHNIQUES_WHY))
    print(rows[-1], flush=True)
    for what, sizes, cost_of, why in (
        ("finished trials (one worker)", TRIALS, lambda n: search_ms(n, 1), TRIALS_WHY),
        ("workers (400 trials)", WORKERS, lambda n: search_ms(400, n), WORKERS_WHY),
    ):
        costs = [cost_of(size) for size in sizes]
        rows.append(row_of(what, sizes, costs, f"{exponent(sizes, costs):.2f}", why))
        print(rows[-1], flush=True)
    head = "| what grows | CPU ms at each size | exponent | why |\n| --- | --- | --- | --- |\n"
    return head + "\n".join(rows) + "\n"


def write_growth(table: str) -> None:
    """In place of the table that stands in docs/scale.md, or at its end."""
    text = DOC.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    DOC.write_text(before + BEGIN + table + END + after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("--growth", action="store_true", help="how costs grow, in place of all else")
    parser.add_argument("--write", action="store_true", help=f"of --growth: into {DOC.name}")
    parser.add_argument("--trials", type=int, default=2000, help="finished trials to begin with")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument(
        "--rounds", type=int, default=3, help="trials of each worker; the first is told apart"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of a simulated trial")
    parser.add_argument("--home", type=Path, help="keep the database there, and go on with one that is there")
    parser.add_argument("--reader", action="store_true", help="time Optuna's own reader of the same trials")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        return work(arguments)
    if arguments.growth:
        table = growth()
        return write_growth(table) if arguments.write else None
    home = (arguments.home or Path(tempfile.mkdtemp(prefix="caddie-scale-"))).absolute()
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o755)
    began = not (home / "scale.toml").exists()
    session = open_session(find_study(study_file(home)), home=home, storage=None, environ={})
    if began:
        started = time.perf_counter()
        fill(session, arguments.trials)
        print(f"{arguments.trials} trials made in {time.perf_counter() - started:.0f} s")
    results: dict[str, Any] = {"trials": arguments.trials, "commands_s": time_commands(home)}
    print("seconds, Python's start included:", results["commands_s"])
    results["dashboard_s"] = time_dashboard(home)
    print("seconds from the dashboard's start:", results["dashboard_s"])
    if arguments.reader:
        results["reader_cpu_ms"] = time_readers(session)
        print("reading the whole study, CPU ms a trial:", results["reader_cpu_ms"])
    if arguments.workers:
        results |= run_workers(arguments, home)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    if arguments.home is None:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
