"""The batch of each stage, its learning rate, the tokens that a run counts; the same steps as by hand."""

from typing import Any

import pytest
import torch

import train_gpt
from conformance.lab import QuietLog
from techniques.base import Batch
from techniques.config import batch_at
from techniques.schedule.batch_schedule import BatchSchedule
from techniques.schedule.seq_schedule import SeqSchedule
from tests.techniques.model_rig import settle
from trainer.seams import Seams
from trainer.stream import block_of

FULL = Batch(4096, 64)


def batch_schedule(**settings) -> BatchSchedule:
    return BatchSchedule(BatchSchedule.Config(**settings))


def test_the_batch_grows_by_one_factor_at_even_borders():
    technique = batch_schedule(start_frac=0.125, num_stages=3, full_at=0.6)
    assert technique.phases() == (0.2, 0.4, 0.6)
    sizes = [technique.batch(FULL, p).tokens for p in (0.0, 0.2, 0.4, 0.6)]
    assert sizes == [512, 1024, 2048, 4096]
    assert all(technique.batch(FULL, p).seq_len == 64 for p in (0.0, 1.0))


@pytest.mark.parametrize(("power", "factor"), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.25)])
def test_the_learning_rate_follows_the_batch(power: float, factor: float):
    technique = batch_schedule(start_frac=0.25, full_at=0.5, lr_power=power)
    hyper = train_gpt.Hyper(lr_mult=3.0)
    assert technique.hyper_at(hyper, 0.49).lr_mult == pytest.approx(3.0 * factor)
    assert technique.hyper_at(hyper, 0.5) == hyper


def test_sizes_are_whole_sequences_in_every_micro_batch():
    run = settle({"batch_schedule": True, "batch_schedule.start_frac": 0.3, "micro_batches": 2})
    assert batch_at(run.config, run.techniques, 0.0) == Batch(32, 16)  # 0.3 · 128 = 38.4: 2 · 1 · 16
    assert batch_at(run.config, run.techniques, 0.4) == Batch(128, 16)


def test_both_schedules_together():
    run = settle(
        {"batch_schedule": True, "seq_schedule": True, "seq_schedule.halvings": 1, "micro_batches": 1}
    )
    assert batch_at(run.config, run.techniques, 0.0) == Batch(64, 8)
    assert batch_at(run.config, run.techniques, 0.4) == Batch(128, 16)


def test_sequences_double_at_even_borders():
    technique = SeqSchedule(SeqSchedule.Config(halvings=3, full_at=0.6))
    assert technique.phases() == (0.2, 0.4, 0.6)
    assert [technique.batch(FULL, p).seq_len for p in (0.0, 0.2, 0.4, 0.6)] == [8, 16, 32, 64]
    named = SeqSchedule(SeqSchedule.Config(lengths="1024, 2048", full_at=0.5))
    assert named.phases() == (0.25, 0.5)
    assert [named.batch(Batch(9216, 3072), p).seq_len for p in (0.1, 0.25, 0.5)] == [1024, 2048, 3072]


@pytest.mark.parametrize(
    "settings", [{"halvings": 5}, {"lengths": "16"}, {"lengths": "4,x"}, {"lengths": "1"}]
)
def test_impossible_lengths_are_refused(settings: dict):
    with pytest.raises(ValueError, match="sequences of 2 to 15 whole tokens"):
        settle({"seq_schedule": True, **{f"seq_schedule.{k}": v for k, v in settings.items()}})


class Steps:
    """Steps of a trainer over one random shard, with what its loader gave."""

    def __init__(self, tmp_path, settings: dict):
        from corpus.shards import write_shard

        path = tmp_path / "fineweb_train_000000.bin"
        tokens = torch.randint(2, 64, (4000,), generator=torch.Generator().manual_seed(1)).numpy()
        write_shard(path, tokens)
        self.run = settle({"micro_batches": 2, "iterations": 10, "max_wallclock_seconds": 0, **settings})
        world, data = train_gpt.World(self.run.config), type("Data", (), {"train_paths": (path,)})
        quiet: Any = QuietLog()
        self.trainer = train_gpt.Trainer(Seams(self.run), world, data, quiet)  # type: ignore[arg-type]

    def take(self, progress: float) -> list[tuple[int, ...]]:
        """The shapes of one step's micro-batches."""
        seen: list[tuple[int, ...]] = []
        inner, trainer = self.trainer.compiled, self.trainer
        trainer.compiled = lambda ids, y: seen.append(tuple(ids.shape)) or inner(ids, y)
        trainer.enter_phase(progress)
        trainer.train_step(train_gpt.Moment(round(10 * progress), 0.0, self.run.config))
        trainer.compiled = inner
        return seen


def test_the_trainer_takes_the_batches_and_counts_their_tokens(tmp_path):
    on = {
        "batch_schedule": True,
        "seq_schedule": True,
        "seq_schedule.halvings": 1,
        "seq_schedule.full_at": 0.2,
    }
    steps = Steps(tmp_path, on)
    assert steps.trainer.phases == [0.0, 0.2, 0.4]
    assert steps.take(0.0) == [(4, 8), (4, 8)]
    assert steps.take(0.2) == [(2, 16), (2, 16)]
    assert steps.take(0.4) == [(4, 16), (4, 16)]
    assert steps.trainer.train_tokens == 64 + 64 + 128
    changes = steps.trainer.seams.audit.changes
    assert changes["batch_schedule"]["batches"] and changes["seq_schedule"]["batches"]


def test_short_sequences_read_the_same_text_as_long_ones(tmp_path):
    """The same tokens, cut shorter: the stream stands at the same place after a step."""
    short, long = (
        Steps(tmp_path, {"seq_schedule": on, **({"seq_schedule.halvings": 2} if on else {})}) for on in (1, 0)
    )
    for steps in (short, long):
        steps.take(0.0)
    assert short.trainer.loader.stream.state() == long.trainer.loader.stream.state()


def test_sequence_stages_with_ends_of_their_own():
    c = SeqSchedule.Config(lengths="16@0.1,32@0.7,64@1.0", rewarm=0.1)
    technique = SeqSchedule(c)
    assert technique.phases() == (0.1, 0.7)
    assert [technique.batch(FULL, p).seq_len for p in (0.0, 0.1, 0.7)] == [16, 32, 64]
    hyper = train_gpt.Hyper()
    told = [technique.hyper_at(hyper, p).lr_mult for p in (0.05, 0.1, 0.15, 0.3, 0.75)]
    assert told == pytest.approx([1.0, 0.0, 0.5, 1.0, 0.5])
    for bad in ("16@0.5,32@0.2", "16@0.5,32@x", "16@0.5,32@1.0", "16@0.5,64@1.5"):
        with pytest.raises(ValueError, match="seq_schedule"):
            SeqSchedule(SeqSchedule.Config(lengths=bad)).early(64)


@pytest.mark.parametrize(("lengths", "block"), [((16, 32), 32), ((1024, 2048, 3072), 6144), ((15, 64), 64)])
def test_blocks_hold_whole_sequences_of_every_length(lengths: tuple[int, ...], block: int):
    assert block_of(lengths) == block
