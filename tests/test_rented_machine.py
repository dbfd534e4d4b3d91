"""studies/rented_machine.sh: what it does in order, and what it asks for before it does anything."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "studies" / "rented_machine.sh"


def run(tools: Path, *, gpus: int | None = 8, **environ: str) -> subprocess.CompletedProcess[str]:
    """The script where nvidia-smi names so many GPUs; None: there is no nvidia-smi."""
    tools.mkdir()
    for name in ("bash", "dirname", "wc", "df", "awk"):
        found = next(Path(p, name) for p in os.get_exec_path() if Path(p, name).exists())
        (tools / name).symlink_to(found)
    if gpus is not None:
        smi = tools / "nvidia-smi"
        smi.write_text("#!/bin/sh\n" + "echo NVIDIA H100\n" * gpus)
        smi.chmod(0o755)
    settings = {"PATH": str(tools), "DRY_RUN": "1"} | environ
    return subprocess.run(["bash", str(SCRIPT)], env=settings, capture_output=True, text=True)


def test_it_sets_up_in_order(tmp_path: Path) -> None:
    ran = run(tmp_path / "bin", SHARDS="3", VARIANT="sp8192")
    assert ran.returncode == 0, ran.stderr
    install, download, validate, last = ran.stdout.splitlines()
    assert install == "+ make install"
    assert download.endswith("corpus download --variant sp8192 --train-shards 3")
    assert validate.endswith("validate.py --device cuda --workers 9")
    assert last.startswith("8 GPUs, ready.")


@pytest.mark.parametrize(
    ("gpus", "environ", "says"),
    [
        (None, {}, "nvidia-smi on its PATH"),
        (0, {}, "names no GPU"),
        (8, {"SHARDS": "many"}, "positive number"),
        (8, {"SHARDS": "900000000"}, "GB of disk are needed"),
    ],
)
def test_what_is_missing_is_told_first(
    tmp_path: Path, gpus: int | None, environ: dict[str, str], says: str
) -> None:
    ran = run(tmp_path / "bin", gpus=gpus, **environ)
    assert ran.returncode == 2 and says in ran.stderr and not ran.stdout
    assert ran.stderr.count("error: ") == 1
