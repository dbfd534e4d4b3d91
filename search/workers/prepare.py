"""What must be right before the first trial: room on the disk, a device, the corpus, a space with
something in it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from corpus import embedded
from corpus.dataset import open_dataset
from search.common.machine import num_cores, visible_gpus
from search.common.options import WorkerSpec
from search.common.paths import ROOT, shown
from search.session.session import Session, check_room, measured
from search.study.limits import figures_summary
from search.study.model import Study
from search.workers import baseline


def gpus_for(study: Study, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The GPUs of each worker ("0,1"), `gpus_per_trial` of them; empty: trials run on the CPU. ValueError:
    demanded, but not here."""
    device = study.settled("device")
    found = () if device == "cpu" else visible_gpus(environ)
    if device == "cuda" and not found:
        raise ValueError(
            f'{study.name} demands a GPU (device = "cuda"), but this machine shows none. Run it on one that '
            'has, or write device = "auto" under [fixed] of a study with another name.'
        )
    each = study.gpus_per_trial
    if found and len(found) < each:
        raise ValueError(
            f"A trial of {study.name} trains on {each} GPUs, but this machine shows {len(found)}. Run it on "
            "one that has them, or set `gpus_per_trial` in [study] of a study with another name."
        )
    return tuple(",".join(found[i : i + each]) for i in range(0, len(found) - each + 1, each))


def default_workers(gpus: tuple[str, ...]) -> int:
    """A worker for each trial's GPUs, else for each core."""
    return len(gpus) or num_cores()


def check_corpus(study: Study) -> str:
    """Builds the embedded corpus if the study's is that one and is missing; checks any.

    Raises ValueError with what a trainer would say at its start, before a trial is spent on it."""
    folder = ROOT / str(study.settled("data_path"))
    tokenizer = ROOT / str(study.settled("tokenizer_path"))
    vocab_size = int(study.settled("vocab_size"))
    data = ROOT / "data"
    if folder == data / "datasets" / f"{embedded.NAME}_sp{vocab_size}":
        try:
            embedded.ensure(data, f"sp{vocab_size}")
        except OSError as error:
            raise ValueError(
                f"The corpus is built under {data}, but {error.filename or data} says: {error.strerror}. "
                "Free some space or fix the permissions."
            ) from error
    seq_len = max(int(study.settled("train_seq_len")), int(study.settled("eval_seq_len")))
    opened = open_dataset(folder, tokenizer_path=tokenizer, vocab_size=vocab_size, seq_len=seq_len)
    return f"{shown(folder)}, {opened.num_train_tokens:,} + {opened.num_val_tokens:,} tokens"


def check_baseline(
    session: Session, spec: WorkerSpec, *, workers: int, gpus: tuple[str, ...]
) -> tuple[Session, str]:
    """The study's starting point, measured once under the load of `workers` trials; and what to tell."""
    found = baseline.stored(session.optuna_study)
    found = found or baseline.measure(session, spec, workers=workers, gpus=gpus)
    told = (
        f"baseline: val_bpb {found['val_bpb']:.4f}, {figures_summary(found)} "
        f"(slowest of {found['workers']} at once)"
    )
    return measured(session), told


def machine(session: Session, spec: WorkerSpec) -> Session:
    """What `search.py` checks before it starts workers, for a worker that a cluster put on another machine.

    Raises ValueError as those checks do."""
    check_room(session.folders)
    gpus_for(session.study, os.environ)
    if session.trainer.built_in:
        check_corpus(session.study)
    if session.trainer.has_baseline:
        session, _ = check_baseline(session, spec, workers=1, gpus=())
    return session
