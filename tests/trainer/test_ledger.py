"""The ledger sees every shard that Python code opens or maps, whatever it is called by."""

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.ledger import Ledger


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "data"
    place.mkdir()
    for name in ("fineweb_train_000000.bin", "fineweb_val_000000.bin", "other.bin"):
        (place / name).write_bytes(bytes(4096))
    return place


@pytest.fixture
def ledger(folder: Path) -> Iterator[Ledger]:
    found = Ledger()
    found.watch(folder)
    found.at("train", "steps")
    found.timing(1)
    yield found
    found.shards = {}  # the hook stays with the process


def by_link(val: Path) -> None:
    link = val.parent.parent / "innocent.bin"
    link.symlink_to(val)
    link.read_bytes()


def by_linked_folder(val: Path) -> None:
    link = val.parent.parent / "elsewhere"
    link.symlink_to(val.parent)
    np.fromfile(link / val.name, dtype=np.uint16)


def by_hard_link(val: Path) -> None:
    beside = val.parent.parent / "hard.bin"
    os.link(val, beside)
    beside.read_bytes()


def by_bytes(val: Path) -> None:
    with open(os.fsencode(val), "rb") as file:
        file.read(2)


def by_os_open(val: Path) -> None:
    os.close(os.open(val, os.O_RDONLY))


def by_dir_fd(val: Path) -> None:
    at = os.open(val.parent, os.O_RDONLY)
    os.close(os.open(val.name, os.O_RDONLY, dir_fd=at))
    os.close(at)


def by_dir_fd_above(val: Path) -> None:
    at = os.open(val.parent.parent, os.O_RDONLY)
    os.close(os.open(f"{val.parent.name}/../{val.parent.name}/{val.name}", os.O_RDONLY, dir_fd=at))
    os.close(at)


def by_opener(val: Path) -> None:
    at = os.open(val.parent, os.O_RDONLY)
    with open(val.name, "rb", opener=lambda name, flags: os.open(name, flags, dir_fd=at)) as file:
        file.read(2)
    os.close(at)


def by_working_folder(val: Path) -> None:
    before = os.getcwd()
    os.chdir(val.parent)
    try:
        np.memmap(val.name, dtype=np.uint16, mode="r")
    finally:
        os.chdir(before)


WAYS = [by_link, by_linked_folder, by_hard_link, by_bytes, by_os_open, by_dir_fd, by_dir_fd_above, by_opener]


@pytest.mark.parametrize("way", [*WAYS, by_working_folder])
def test_a_shard_is_known_by_its_inode(ledger: Ledger, folder: Path, way: Callable[[Path], None]) -> None:
    way(folder / "other.bin")
    assert ledger.findings() == [] and ledger.summary() == []
    for left in folder.parent.iterdir():
        if left != folder:
            left.unlink()
    way(folder / "fineweb_val_000000.bin")
    assert ledger.findings() == ["train: steps read a validation shard that it may not read there"]


def test_a_map_of_a_descriptor_that_was_opened_earlier_is_seen(folder: Path) -> None:
    ledger = Ledger()
    ledger.watch(folder)
    at = os.open(folder / "fineweb_val_000000.bin", os.O_RDONLY)  # while the data are checked
    assert ledger.findings() == []
    ledger.timing(1)
    ledger.stage = "train"
    ledger.reader = "steps"
    mmap.mmap(at, 0, prot=mmap.PROT_READ).close()
    os.close(at)
    ledger.shards = {}
    assert ledger.findings() == ["train: steps read a validation shard that it may not read there"]


@pytest.mark.parametrize("how", ["descriptor", "map", "C code"])
@pytest.mark.parametrize("split", ["val", "train"])
def test_what_is_still_open_when_training_begins_counts_as_read(folder: Path, how: str, split: str) -> None:
    shard = folder / f"fineweb_{split}_000000.bin"
    ledger = Ledger()
    ledger.watch(folder)
    if how == "descriptor":
        kept = open(shard, "rb")
    elif how == "map":
        kept = np.memmap(shard, dtype=np.uint16, mode="r")
    else:
        kept = torch.from_file(str(shard), shared=True, size=64, dtype=torch.uint8)
    ledger.timing(1)
    ledger.at("train", "warm-up")
    expected = ["train: warm-up read a validation shard that it may not read there"] if split == "val" else []
    assert ledger.findings() == expected
    del kept
    other = Ledger()
    other.watch(folder)
    other.at("train", "warm-up")
    assert other.findings() == []
    ledger.shards = {}
    other.shards = {}
