"""Data orders: a token at most once an epoch, the same for any world, by the seed alone, and resumable."""

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest

from techniques.data.coprime_loader import CoprimeLoader, coprime_blocks, mixing_pick
from techniques.data.shard_order import ShardOrder, shard_hardness
from techniques.data.shuffled_loader import ShuffledLoader, pick_by_remaining
from trainer.stream import BlockStream, TokenStream, generator_of

SIZES = (100, 57, 9, 8, 131)  # of shards; with blocks of 8 the fourth has none


def shards(sizes: tuple[int, ...] = SIZES) -> list[np.ndarray]:
    """Shards whose tokens are all different."""
    starts = np.cumsum([0, *sizes])
    return [np.arange(a, b, dtype=np.uint16) for a, b in itertools.pairwise(starts)]


ORDERS: dict[str, Any] = {
    "coprime": CoprimeLoader(CoprimeLoader.Config(shards_start=1, shards_end=3, grow_batches=4)),
    "shuffled": ShuffledLoader(),
    "hardest": ShardOrder(ShardOrder.Config(by="hardest")),
    "list": ShardOrder(ShardOrder.Config(by="list", order="4,0")),
    "by seed": ShardOrder(ShardOrder.Config(by="shuffled")),
}
BLOCKS = ("coprime", "shuffled")


def one_epoch(stream: BlockStream, *, rows: int, seq_len: int) -> np.ndarray:
    """Every row of the first epoch, [n, T + 1], in an order of batches."""
    total = sum(len(order) for order in stream.orders) * stream.block // seq_len
    assert total % rows == 0
    return np.concatenate([stream.batch(1, rows, seq_len)[0] for _ in range(total // rows)])


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("seq_len", [8, 4, 2])
def test_each_target_comes_once_an_epoch_and_hardly_one_is_left_out(name: str, seq_len: int):
    stream = ORDERS[name].loader(shards(), 7, 8)
    phases = stream.phases
    rows = one_epoch(stream, rows=1, seq_len=seq_len)
    assert (np.diff(rows.astype(int), axis=1) == 1).all(), "a row is a stretch of one shard"
    targets = rows[:, 1:].ravel()
    assert len(set(targets.tolist())) == len(targets)
    # the obvious loop: cut each shard from its phase on, in steps of a block
    expected: set[int] = set()
    for tokens, phase in zip(shards(), phases, strict=True):
        start = phase
        while start + 8 < len(tokens):
            expected |= set(tokens[start + 1 : start + 9].tolist())
            start += 8
    assert set(targets.tolist()) == expected
    assert stream.epoch == 0 and stream.batch(1, 1, seq_len).shape == (1, 1, seq_len + 1)
    assert stream.epoch == 1 and stream.phases != phases


@pytest.mark.parametrize("name", ORDERS)
def test_the_seed_alone_decides_and_any_world_sees_the_same_batch(name: str):
    def batches(seed: int, parts: int) -> np.ndarray:
        stream = ORDERS[name].loader(shards(), seed, 8)
        return np.stack([stream.batch(parts, 4 // parts, 8).reshape(4, 9) for _ in range(12)])

    assert np.array_equal(batches(1, 4), batches(1, 4))
    if name in BLOCKS:  # the sequential orders cut a part from a stretch of its own, whatever the world
        assert np.array_equal(batches(1, 4), batches(1, 2))
    if name not in ("hardest", "list"):
        assert not np.array_equal(batches(1, 4), batches(2, 4))
    plain = TokenStream(shards())
    assert not np.array_equal(batches(1, 4)[0], plain.batch(4, 1, 8).reshape(4, 9))


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("before", [0, 1, 5, 30])
def test_a_stream_goes_on_where_its_state_says(name: str, before: int):
    stream, again = (ORDERS[name].loader(shards(), 3, 8) for _ in range(2))
    for _ in range(before):
        stream.batch(1, 3, 4)  # half a block stays over
    again.load(json.loads(json.dumps(stream.state())))
    for _ in range(20):
        assert np.array_equal(stream.batch(1, 3, 4), again.batch(1, 3, 4))
    assert stream.state() == again.state()


def test_lengths_may_change_within_an_epoch():
    stream = ORDERS["shuffled"].loader(shards(), 5, 8)
    rows = [stream.batch(1, 3, 2), stream.batch(1, 5, 4), stream.batch(1, 2, 8), stream.batch(1, 7, 2)]
    targets = np.concatenate([row[:, :, 1:].ravel() for row in rows])
    assert len(set(targets.tolist())) == len(targets) == 6 + 20 + 16 + 14 and stream.epoch == 0
    with pytest.raises(ValueError, match="must divide"):
        stream.batch(1, 1, 3)
    with pytest.raises(ValueError, match="at least one sequence"):
        ORDERS["shuffled"].loader(shards((5, 8)), 5, 8)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 12, 97, 360])
def test_a_coprime_stride_visits_every_block(n: int):
    for seed in range(20):
        order = coprime_blocks(n, generator_of(seed))
        assert sorted(order.tolist()) == list(range(n))
        if n > 1:
            stride = (order[1] - order[0]) % n
            assert math.gcd(int(stride), n) == 1
            assert order.tolist() == [(int(order[0]) + j * int(stride)) % n for j in range(n)]


def test_a_batch_mixes_as_many_shards_as_its_turn_says():
    config = CoprimeLoader.Config(shards_start=2, shards_end=6, grow_batches=10)
    pick, left = mixing_pick(config), np.full(20, 50)
    for batch, shards_mixed in ((0, 2), (5, 4), (10, 6), (99, 6)):
        drawn = pick(left, 24, batch, generator_of(batch))
        assert len(set(drawn.tolist())) == shards_mixed
        turn = drawn[:shards_mixed].tolist()
        assert drawn.tolist() == turn * (24 // shards_mixed)  # one each in turn
    scarce = np.array([3, 0, 1, 2])
    drawn = pick(scarce, 6, 99, generator_of(1))
    assert np.bincount(drawn, minlength=4).tolist() == scarce.tolist()


def test_shuffled_draws_are_uniform_over_what_is_left():
    """Each place falls on a shard in proportion to its sequences; no shard gives what it lacks."""
    left, rng = np.array([5, 10, 1, 0, 20]), np.random.default_rng(0)
    counts = np.zeros((3, 5))
    for _ in range(3000):
        for place, s in enumerate(pick_by_remaining(left, 3, 0, rng).tolist()):
            counts[place, s] += 1
    assert np.abs(counts / 3000 - left / 36).max() < 0.03
    assert np.bincount(pick_by_remaining(left, 36, 0, rng)).tolist() == left.tolist()


def test_hard_shards_come_first():
    rng = np.random.default_rng(0)
    easy, middle, hard = (rng.integers(0, n, 2000).astype(np.uint16) for n in (2, 40, 4000))
    assert shard_hardness(easy) < shard_hardness(middle) < shard_hardness(hard)
    for by, first in (("hardest", hard), ("easiest", easy)):
        stream = ShardOrder(ShardOrder.Config(by=by)).loader([middle, easy, hard], 0, 8)
        assert np.array_equal(stream.take(2000), first)
        assert np.array_equal(stream.take(2000), middle)


@pytest.mark.parametrize("order", ["0,0", "5", "a", "1,,2"])
def test_a_list_of_shards_must_be_one(order: str):
    with pytest.raises(ValueError, match="names different shards from 0 to 4"):
        ShardOrder(ShardOrder.Config(by="list", order=order)).loader(shards(), 0, 8)
