"""The conformance suite and its table.

    python validate.py [NAMES…] [--pairs] [--device cpu|cuda] [--json FILE] [--csv FILE]
                       [--inductor]

Every technique runs on a tiny trainer under its `smoke` settings and must hold the laws in `conformance/`.
Exit status: 0 all hold, 1 one does not (the reasons stand under the table), 2 an unknown name or no such
device.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table

from conformance import ranks, suite
from conformance.lab import write_corpus
from techniques import catalog
from techniques.base import nearest

COLUMNS = (
    *("status", "seconds", "params_added", "bytes_added", "step_time_ratio", "bpb_added"),
    *("verdict", "activity"),
)
RANKS_S = 60.0  # starting two ranks
WIDE = 110  # columns that the whole table needs
RANKS_EACH_S = 20.0  # one technique on two ranks, on a busy machine


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="validate.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help="techniques to check; none: all of them")
    parser.add_argument("--pairs", action="store_true", help="then all legal pairs: construction, causality")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--inductor", action="store_true", help="also compile with the real Inductor")
    parser.add_argument("--workers", type=int, default=2, help="processes that check techniques")
    return parser.parse_args(argv)


def table_of(names: list[str], reports: dict[str, suite.Report], clock_s: float, *, wide: bool) -> Table:
    """A row a technique; a narrow terminal has no room for what its page tells too, the legality."""
    done = f"{len(reports)} of {len(names)} techniques, {clock_s:.0f} s"
    padding = (0, 1) if wide else (0, 1, 0, 0)
    table = Table(title=f"conformance: {done}", title_justify="left", show_edge=wide, padding=padding)
    table.add_column("technique", no_wrap=True)
    table.add_column("status", overflow="fold")
    for column in ("s", "Δparams", "Δbytes", "Δstep\ntime", "ΔBPB\n(smoke)"):
        table.add_column(column, justify="right", no_wrap=True)
    if wide:
        table.add_column("legality")
    table.add_column("activity", overflow="fold")
    for name in names:
        report = reports.get(name)
        if report is None:
            table.add_row(name, "[dim]…")
            continue
        colour = {"passed": "green", "unavailable": "yellow"}.get(report.status, "bold red")
        table.add_row(
            name,
            f"[{colour}]{report.status}",
            f"{report.seconds:.1f}",
            *figures(report),
            *((report.verdict,) if wide else ()),
            report.activity,
        )
    return table


def figures(report: suite.Report) -> list[str]:
    ratio = report.step_time_ratio
    return [
        "" if report.params_added is None else f"{report.params_added:+,}",
        "" if report.bytes_added is None else f"{report.bytes_added:+,}",
        "" if ratio is None else f"{100 * (ratio - 1):+.0f} %",
        "" if report.bpb_added is None else f"{report.bpb_added:+.3f}",
    ]


def check_techniques(
    names: list[str], *, folder: Path, args: argparse.Namespace, console: Console
) -> dict[str, suite.Report]:
    """Every technique in a pool, beside the two ranks that run them all in one process group."""
    start = time.perf_counter()
    reports = {}
    told = {}
    wide = console.width >= WIDE
    ranks_out = folder.parent / "ranks.jsonl"
    alone = args.device == "cuda" and torch.cuda.device_count() < 2  # two ranks need two GPUs
    two_ranks = None if alone else ranks.start(names, folder=folder, out=ranks_out, device=args.device)
    with pool(args) as workers, Live(console=console, refresh_per_second=4) as live:
        bench = {"folder": str(folder), "device": args.device, "inductor": args.inductor}
        waiting = {workers.submit(suite.run_named, name, **bench) for name in names}
        while waiting:
            finished, waiting = concurrent.futures.wait(waiting, timeout=0.5)
            reports |= {report.technique: report for report in (f.result() for f in finished)}
            live.update(table_of(names, reports, time.perf_counter() - start, wide=wide))
        if two_ranks is not None:
            told = ranks.finish(two_ranks, ranks_out, timeout_s=RANKS_S + RANKS_EACH_S * len(names))
        for name in names:
            if two_ranks is None:
                reports[name].add("two ranks", "skipped", "this machine has one GPU")
            elif reports[name].trace:
                suite.examine(
                    reports[name],
                    "two ranks",
                    ranks.compare,
                    reports[name].trace,
                    told.get(name, told.get("")),
                )
        live.update(table_of(names, reports, time.perf_counter() - start, wide=wide))
    return reports


def pool(args: argparse.Namespace) -> concurrent.futures.ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(max(1, args.workers), mp_context=spawn)


def check_pairs(
    names: list[str], *, folder: Path, args: argparse.Namespace, console: Console
) -> dict[str, str]:
    """`a + b` -> why the two fail together, or nothing."""
    pairs, start = suite.legal_pairs(names), time.perf_counter()
    with pool(args) as workers, console.status(f"{len(pairs)} pairs"):
        checks = [
            workers.submit(suite.check_pair, pair, folder=str(folder), device=args.device) for pair in pairs
        ]
        found = {f"{a} + {b}": check.result() for (a, b), check in zip(pairs, checks, strict=True)}
    bad = sum(1 for reason in found.values() if reason)
    console.print(f"\npairs: {len(pairs)} checked, {bad} failed, {time.perf_counter() - start:.0f} s")
    return found


def main(argv: list[str]) -> int:
    args, shelf = arguments(argv), catalog.technique_files()
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        for name in args.names:
            if name not in shelf:
                raise ValueError(f"Unknown technique {name!r}. {nearest(name, shelf)}")
        names = sorted(set(args.names)) or list(shelf)
        for option in ("json", "csv"):
            path: Path | None = getattr(args, option)
            if path and (path.is_dir() or not path.parent.is_dir()):
                raise ValueError(f"--{option} names a file to write, but {path} cannot be one. Correct it.")
        if args.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda needs a GPU, but torch sees none here. Use --device cpu.")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as root:
        folder = write_corpus(Path(root))
        reports = check_techniques(names, folder=folder, args=args, console=console)
        pairs = check_pairs(names, folder=folder, args=args, console=console) if args.pairs else {}
    if not console.is_terminal:
        console.line()  # the table ends without a line break there
    reasons = [f"{name}: {why}" for name in names for why in reports[name].failures]
    reasons += [f"{pair}: {why}" for pair, why in pairs.items() if why]
    for reason in reasons:
        console.print(reason, style="red", markup=False, soft_wrap=True)
    if args.json:
        found = {"techniques": {n: reports[n].as_json() for n in names}, "pairs": pairs}
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if args.csv:
        write_table(args.csv, reports)
    return 1 if reasons else 0


def write_table(path: Path, reports: Mapping[str, suite.Report]) -> None:
    """CSV, a row a technique; what was not measured is empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, ("technique", *COLUMNS), lineterminator="\n")
        rows.writeheader()
        rows.writerows({"technique": n, **{c: getattr(r, c) for c in COLUMNS}} for n, r in reports.items())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
