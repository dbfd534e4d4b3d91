"""Every preset, small: `python -m benchmarks.trainer.presets [NAMES...]`, a table, kept in docs/presets.md.

The parameters are those of the preset at full size, counted on the meta device. The rest comes from one run
of a few steps on a CPU under tests/test_presets.py's overrides, on a corpus of a few thousand tokens: its BPB
says that the stack runs, nothing about its worth. `script` is the one-file form of that very run, to read and
lean; `equal`: whether the first gave the same losses, artifact and BPB to the last bit in an empty folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import train_gpt
from bundle.one_file import export
from techniques import catalog
from techniques.config import read_preset, resolve
from tests.bundle.test_bundle import alone, facts
from tests.conftest import TINY_MODEL, build_tiny, run_trainer
from tests.test_presets import RECORDS, resolved, small

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "presets.md"
HEAD = (
    *("preset", "parameters", "legality", "techniques", "model bytes", "smoke BPB", "not active"),
    *("script, bytes", "equal"),
)


def row_of(preset: str, tiny: dict[str, str], folder: Path) -> list[str]:
    """One line of the table. RuntimeError when a run fails."""
    params = sum(p.numel() for p in train_gpt.build_model(resolved(preset), "meta").parameters())
    settings = small(preset, tiny)
    ran = run_trainer({**settings, "out_dir": str(folder / "whole")}, f"--preset={preset}")
    if ran.returncode:
        raise RuntimeError(f"{preset} must run, but ended with {ran.returncode}: {ran.stderr[-2000:]}")
    layers = {"preset": read_preset(preset), "command line": settings}
    run = resolve(layers, catalog.metadata())
    script = export(run, folder / "alone")
    again = alone(script, "--out_dir=out")
    equal = again.returncode == 0 and facts(folder / "alone" / "out") == facts(folder / "whole")
    result = json.loads((folder / "whole" / "result.json").read_text(encoding="utf-8"))
    idle = sorted(f"{n}: {f['verdict']}" for n, f in result["activity"].items() if f["verdict"] != "active")
    return [
        preset,
        f"{params:,}",
        RECORDS[preset][1],
        str(len(run.techniques)),
        f"{result['model_bytes']:,}",
        f"{result['val_bpb']:.4f}",
        ", ".join(idle) or "none",
        f"{script.stat().st_size:,} / {result['code_bytes']:,}",
        "yes" if equal else "NO",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(RECORDS), help="presets; all of them by default")
    names: list[str] = parser.parse_args().names
    with tempfile.TemporaryDirectory() as kept:
        root = Path(kept)
        tiny, rows = {**TINY_MODEL, **build_tiny(root)}, list[list[str]]()
        for name in names:
            rows.append(row_of(name, tiny, root / name))
            print(" | ".join(rows[-1]), flush=True)
    if names == list(RECORDS):
        table = [f"| {' | '.join(cells)} |" for cells in (HEAD, ["---"] * len(HEAD), *rows)]
        text = ["# Presets", "", str(__doc__).partition("\n\n")[2].strip(), "", *table, ""]
        DOCUMENT.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
