"""The shard format: exact bytes, and an error for each way a file can be wrong."""

import struct
from pathlib import Path

import numpy as np
import pytest

from corpus.shards import (
    check_vocab,
    read_header,
    read_shard,
    read_tokens,
    shard_paths,
    sidecar_paths,
    write_shard,
)


def test_a_shard_has_the_published_bytes(tmp_path: Path):
    path = tmp_path / "fineweb_train_000000.bin"
    write_shard(path, np.array([1, 2, 65535]))
    expected = struct.pack("<256i", 20240520, 1, 3, *[0] * 253) + struct.pack("<3H", 1, 2, 65535)
    assert path.read_bytes() == expected
    assert read_header(path) == 3
    assert read_shard(path).dtype == np.uint16
    assert read_shard(path).tolist() == [1, 2, 65535]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_an_empty_shard_reads_as_empty(tmp_path: Path):
    path = tmp_path / "fineweb_train_000000.bin"
    write_shard(path, np.zeros(0, dtype=np.uint16))
    assert read_shard(path).size == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:500], "header of 1024 bytes"),
        (lambda raw: b"", "header of 1024 bytes"),
        (lambda raw: raw[:-1], "truncated"),
        (lambda raw: raw[:-2], "truncated"),
        (lambda raw: raw + b"\0\0", "foreign bytes"),
        (lambda raw: struct.pack("<i", 20240521) + raw[4:], "first word is 20240520"),
        (lambda raw: raw[:4] + struct.pack("<i", 2) + raw[8:], "version 2"),
        (lambda raw: raw[:8] + struct.pack("<i", -1) + raw[12:], "bytes"),
        (lambda raw: struct.pack(">256i", 20240520, 1, 5, *[0] * 253) + raw[1024:], "first word"),
    ],
)
def test_damaged_shards_are_refused(tmp_path: Path, damage, message: str):
    path = tmp_path / "fineweb_train_000000.bin"
    write_shard(path, np.arange(5))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        read_shard(path)


@pytest.mark.parametrize(
    "tokens", [np.array([65536]), np.array([-1]), np.array([1.0]), np.zeros((2, 2), dtype=int)]
)
def test_what_is_no_token_array_is_not_written(tmp_path: Path, tokens: np.ndarray):
    with pytest.raises(ValueError, match="shard"):
        write_shard(tmp_path / "s.bin", tokens)
    assert not list(tmp_path.iterdir())


def test_byte_sidecars_are_not_validation_shards(tmp_path: Path):
    # Trap 27: the glob fineweb_val_*.bin matches fineweb_val_bytes_*.bin too.
    for name in ("fineweb_val_000001.bin", "fineweb_val_000000.bin", "fineweb_val_bytes_000000.bin"):
        write_shard(tmp_path / name, np.array([1]))
    assert len(list(tmp_path.glob("fineweb_val_*.bin"))) == 3
    assert [path.name for path in shard_paths(tmp_path, "val")] == [
        "fineweb_val_000000.bin",
        "fineweb_val_000001.bin",
    ]
    assert [path.name for path in sidecar_paths(tmp_path)] == ["fineweb_val_bytes_000000.bin"]


def test_matching_nothing_is_an_error(tmp_path: Path):
    write_shard(tmp_path / "fineweb_val_bytes_000000.bin", np.array([1]))
    with pytest.raises(ValueError, match="at least one val shard"):
        shard_paths(tmp_path, "val")
    with pytest.raises(ValueError, match="no folder"):
        shard_paths(tmp_path / "absent", "val")
    with pytest.raises(ValueError, match="'train' or 'val'"):
        shard_paths(tmp_path, "test")


def test_shards_join_up_to_a_limit(tmp_path: Path):
    for index in range(3):
        write_shard(tmp_path / f"fineweb_train_{index:06d}.bin", np.arange(4) + 10 * index)
    paths = shard_paths(tmp_path, "train")
    assert read_tokens(paths, limit=6).tolist() == [0, 1, 2, 3, 10, 11]
    assert read_tokens(paths).size == 12


def test_tokens_beyond_the_vocabulary_are_refused():
    check_vocab(np.array([1, 9], dtype=np.uint16), vocab_size=10, where="s")
    with pytest.raises(ValueError, match=r"below vocab_size 10.*position 1"):
        check_vocab(np.array([1, 10], dtype=np.uint16), vocab_size=10, where="s")
