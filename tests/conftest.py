"""A tiny dataset in the challenge's shard format, made once a session from generated text."""

import atexit
import functools
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from search.trainers.trainer import TRAINER
from search.trainers.warm import WarmTrainers

ROOT = Path(__file__).resolve().parent.parent

WORDS = (
    "the caddie carries every club and names one for each lie while the player looks at the wind "
    "then a long iron rises from wet grass and nobody says a word until it lands near the flag"
).split()


def tiny_text(num_documents: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [
        " ".join(
            rng.choice(WORDS) + str(rng.randrange(50)) * (rng.random() < 0.1)
            for _ in range(rng.randrange(30, 90))
        )
        for _ in range(num_documents)
    ]


def build_tiny(root: Path) -> dict[str, str]:
    """Settings (data_path, tokenizer_path, vocab_size) of a small corpus built by the product's own
    builder."""
    text = root / "text"
    text.mkdir()
    for i, document in enumerate(tiny_text(400, seed=7)):
        (text / f"{i:04d}.txt").write_text(document, encoding="utf-8")
    command = [sys.executable, "-m", "corpus", "build", "--text", str(text), "--to", str(root / "data")]
    command += ["--name", "tiny", "--vocab-size", "320", "--val-docs", "40"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    data = root / "data"
    return {
        "data_path": str(data / "datasets" / "tiny_sp320"),
        "tokenizer_path": str(data / "tokenizers" / "tiny_320_bpe.model"),
        "vocab_size": "320",
    }


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return build_tiny(tmp_path_factory.mktemp("tiny"))


TINY_MODEL = {
    "num_layers": "3",
    "model_dim": "32",
    "num_heads": "2",
    "num_kv_heads": "1",
    "train_batch_tokens": "256",
    "train_seq_len": "32",
    "micro_batches": "2",
    "iterations": "6",
    "max_wallclock_seconds": "0",
    "warmup_steps": "0",
    "warmdown_iters": "2",
    "quantize_min_numel": "256",
    "val_batch_size": "512",
    "val_loss_every": "0",
    "train_log_every": "1",
    "num_threads": "1",
    "device": "cpu",
    "compute_dtype": "float32",
}


@pytest.fixture
def tiny(tiny_data: dict[str, str]) -> dict[str, str]:
    """Settings of a run of a few seconds."""
    return {**TINY_MODEL, **tiny_data}


def arguments(settings: dict[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]


@functools.cache
def warm_trainers() -> WarmTrainers:
    """What this process's tests fork their trainers from."""
    made = WarmTrainers()
    atexit.register(made.close)
    return made


def forked_trainer(argv: list[str]) -> subprocess.CompletedProcess[str] | None:
    """A run as a fork of a warm process: it prints to one console. None where there can be none."""
    environ = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"} | {"OMP_NUM_THREADS": "1"}
    life, theirs = socket.socketpair()
    with tempfile.TemporaryFile() as console, life:
        with theirs:
            fds = (console.fileno(), theirs.fileno())
            how: dict[str, Any] = {"environment": environ, "cwd": ROOT, "fds": fds, "stop": lambda: False}
            pid = warm_trainers().begin(TRAINER, argv, **how)
        if not pid:
            return None
        life.settimeout(240)
        status = b"".join(iter(lambda: life.recv(64), b""))
        warm_trainers().over(pid)
        console.seek(0)
        said = console.read().decode()
    return subprocess.CompletedProcess([*TRAINER, *argv], int(status), said, said)


def run_trainer(settings: dict[str, str], *extra: str, ranks: int = 1, env: dict[str, str] | None = None):
    """train_gpt.py as a user would start it; CompletedProcess with stdout and stderr."""
    if ranks == 1 and not env and "compile" not in settings:
        done = forked_trainer([*arguments(settings), *extra])
        if done is not None:
            return done
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [*launcher, str(ROOT / "train_gpt.py"), *arguments(settings), *extra]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=240
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that parallel workers end together."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
