"""`python -m benchmarks.drafts FOLDER [--newest 10] [--draws 200]`: of random draws from the drafts of the
newest scripts below FOLDER (records/*/train_gpt.py of the challenge, say), how many would run.

For each script: scanned, drafted, loaded; run as it is, which says how far the stub of CUDA comes with it
(stub.py), then with each draw. A draw that comes as far has run; one that ends earlier has crashed, and its
error is told. Nothing of the scripts is kept.
"""

from __future__ import annotations

import argparse
import collections
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.drafts.stub import Reached, reach
from readers.scan import scan
from search.space.foreign import foreign_space
from search.study.load import load_study
from search.trainers.foreign.draft import draft
from search.trainers.foreign.draws import draws


@dataclass
class Tried:
    """One script."""

    name: str
    variables: int
    plain: Reached  # as it is
    ran: int = 0
    crashed: list[tuple[str, dict[str, str]]] = field(default_factory=list[tuple[str, dict[str, str]]])


def try_script(script: Path, count: int, seed: int) -> Tried | None:
    """None where there is nothing to search."""
    with tempfile.TemporaryDirectory() as made:
        home = Path(made)
        out = home / "theirs.toml"
        out.write_text(draft(scan(script), out), encoding="utf-8")
        foreign = load_study(out, {}).foreign
        if foreign is None or not foreign.variables:
            return None
        space = foreign_space(foreign, str(out))
        work = home / "work"
        work.mkdir()
        plain = reach(script, {n: str(v) for n, v in space.environment({}).items()}, work)
        tried = Tried(script.parent.name, len(foreign.variables), plain)
        for params in draws(foreign, count, seed):
            found = reach(script, space.environment(params), work)
            if found.rank >= plain.rank:
                tried.ran += 1
            else:
                tried.crashed.append((found.error, {k: str(v) for k, v in params.items()}))
    return tried


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--newest", type=int, default=10)
    parser.add_argument("--draws", type=int, default=200, help="of all scripts together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a part of the name of the scripts' folders")
    args = parser.parse_args()
    scripts = [p for p in sorted(args.folder.rglob("train_gpt.py")) if args.only in p.parent.name]
    scripts = scripts[-args.newest :]
    ran = 0
    count = 0
    print(f"{'script':<60} {'free':>4} {'as it is':<9} {'ran':>9}", flush=True)
    for script in scripts:
        tried = try_script(script, args.draws // len(scripts), args.seed)
        if tried is None:
            print(f"{script.parent.name[:60]:<60} nothing to search", flush=True)
            continue
        total = tried.ran + len(tried.crashed)
        ran += tried.ran
        count += total
        print(
            f"{tried.name[:60]:<60} {tried.variables:>4} {tried.plain.stage:<9} {tried.ran:>4}/{total:<4}"
            + (f"  stub: {tried.plain.error[:100]}" if tried.plain.error else ""),
            flush=True,
        )
        for error, times in collections.Counter(error for error, _ in tried.crashed).most_common():
            print(f"    {times} x {error[:160]}", flush=True)
    print(f"{ran} of {count} draws ran" + (f", {ran / count:.0%}" if count else ""))


if __name__ == "__main__":
    main()
