"""open_dataset: what a trainer gets, and one clear error for each kind of bad folder."""

import dataclasses
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from corpus.bpb import count_bytes
from corpus.dataset import check_dataset, check_overlap, open_dataset
from corpus.export import Target
from corpus.manifest import manifest_path, read_manifest, write_manifest
from corpus.shards import read_shard, shard_paths, write_shard
from corpus.tokenizer import Tokenizer, encode_documents, train_bpe
from tests.corpus.conftest import sentences


@pytest.fixture
def foreign(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """An export without manifest: 20 validation and 80 training documents in two shards."""
    folder = tmp_path / "data/datasets/other_sp400"
    folder.mkdir(parents=True)
    documents = encode_documents(tokenizer, sentences(7, 100))
    write_shard(folder / "fineweb_val_000000.bin", np.concatenate(documents[:20]))
    write_shard(folder / "fineweb_train_000000.bin", np.concatenate(documents[20:60]))
    write_shard(folder / "fineweb_train_000001.bin", np.concatenate(documents[60:]))
    return folder


def test_a_trainer_gets_all_it_needs(dataset_target: Target):
    dataset = open_dataset(dataset_target.folder, vocab_size=400, seq_len=64)
    tokens = dataset.val_tokens()
    assert dataset.num_scored_tokens == (dataset.num_val_tokens - 1) // 64 * 64 == tokens.size - 1
    assert tokens.dtype == np.uint16
    assert np.array_equal(dataset.target_bytes(tokens), count_bytes(dataset.luts, tokens[:-1], tokens[1:]))
    assert dataset.val_tokens(max_tokens=300).size == 257
    assert dataset.num_train_tokens == sum(read_shard(path).size for path in dataset.train_paths)
    assert dataset.num_val_documents == 30
    manifest = read_manifest(dataset_target.folder)
    assert manifest is not None
    assert dataset.data_id == manifest.data_id


def test_data_id_depends_on_content_not_on_place(
    dataset_target: Target, tmp_path: Path, foreign: Path, tokenizer_path: Path
):
    first = open_dataset(dataset_target.folder, vocab_size=400, seq_len=64).data_id
    shutil.copytree(dataset_target.root, tmp_path / "moved")
    assert open_dataset(tmp_path / "moved/datasets/tale_sp400", vocab_size=400, seq_len=8).data_id == first

    def foreign_id() -> str:
        return open_dataset(foreign, tokenizer_path=tokenizer_path, vocab_size=400, seq_len=64).data_id

    before = foreign_id()
    assert before == foreign_id() != first
    tokens = np.array(read_shard(foreign / "fineweb_train_000000.bin"))
    tokens[5] ^= 1
    write_shard(foreign / "fineweb_train_000000.bin", tokens)
    assert foreign_id() != before


def test_opening_is_fast(tmp_path: Path, tokenizer: Tokenizer, tokenizer_path: Path):
    documents = encode_documents(tokenizer, sentences(8, 1700))
    write_shard(tmp_path / "fineweb_val_000000.bin", np.concatenate(documents[:1200]))
    write_shard(tmp_path / "fineweb_train_000000.bin", np.concatenate(documents[1200:]))
    start = time.process_time()
    dataset = open_dataset(tmp_path, tokenizer_path=tokenizer_path, vocab_size=400, seq_len=64)
    assert time.process_time() - start < 1.0
    assert 90_000 < dataset.byte_check.num_tokens <= 100_000
    assert not dataset.byte_check.complete


def test_no_such_folder_and_missing_splits(tmp_path: Path, foreign: Path, tokenizer_path: Path):
    with pytest.raises(ValueError, match="no folder"):
        open_dataset(tmp_path / "absent", vocab_size=400, seq_len=64)
    (foreign / "fineweb_val_000000.bin").rename(foreign / "fineweb_val_bytes_000000.bin")
    with pytest.raises(ValueError, match="at least one val shard"):
        open_dataset(foreign, tokenizer_path=tokenizer_path, vocab_size=400, seq_len=64)


def test_no_manifest_and_no_tokenizer(foreign: Path):
    with pytest.raises(ValueError, match="Give the tokenizer's path"):
        open_dataset(foreign, vocab_size=400, seq_len=64)


def test_wrong_tokenizers(dataset_target: Target, tmp_path: Path):
    with pytest.raises(ValueError, match="Wrong tokenizer size"):
        open_dataset(dataset_target.folder, vocab_size=1024, seq_len=64)
    other = tmp_path / "other.model"
    other.write_bytes(train_bpe(sentences(77, 100), vocab_size=400))
    with pytest.raises(ValueError, match="very tokenizer that made them"):
        open_dataset(dataset_target.folder, tokenizer_path=other, vocab_size=400, seq_len=64)


def test_tokens_beyond_the_vocabulary(foreign: Path, tmp_path: Path):
    small = tmp_path / "small.model"
    small.write_bytes(train_bpe(sentences(1, 200), vocab_size=350))
    with pytest.raises(ValueError, match="below vocab_size 350"):
        open_dataset(foreign, tokenizer_path=small, vocab_size=350, seq_len=64)


@pytest.mark.parametrize("split", ["train", "val"])
def test_too_small_for_the_sequence_length(foreign: Path, tokenizer_path: Path, split: str):
    shards = shard_paths(foreign, split)
    size = sum(read_shard(path).size for path in shards)
    other = 10**6 if split == "val" else size + 1
    write_shard(
        foreign / f"fineweb_{'train' if split == 'val' else 'val'}_000009.bin",
        np.ones(other, dtype=np.uint16),
    )
    with pytest.raises(ValueError, match=rf"the {split} split of .* has {size:,}\. Use a shorter seq_len"):
        open_dataset(foreign, tokenizer_path=tokenizer_path, vocab_size=400, seq_len=size)


def test_bos_missing(foreign: Path, tokenizer_path: Path):
    for split in ("val", "train"):
        path = foreign / f"fineweb_{split}_000000.bin"
        whole = np.array(read_shard(path))
        write_shard(path, whole[1:])
        with pytest.raises(ValueError, match="BOS missing"):
            open_dataset(foreign, tokenizer_path=tokenizer_path, vocab_size=400, seq_len=64)
        write_shard(path, whole)


def test_a_validation_shard_among_the_training_files(foreign: Path, tokenizer_path: Path):
    shutil.copy(foreign / "fineweb_val_000000.bin", foreign / "fineweb_train_000002.bin")
    with pytest.raises(ValueError, match=r"overlap.*20 of 20.*fineweb_train_000002\.bin wholly"):
        open_dataset(foreign, tokenizer_path=tokenizer_path, vocab_size=400, seq_len=64)


def test_an_export_split_at_the_wrong_place(foreign: Path, tokenizer_path: Path, tokenizer: Tokenizer):
    # Trap 8: scored on 50 documents, but training begins after the first 20.
    documents = encode_documents(tokenizer, sentences(7, 100))
    write_shard(foreign / "fineweb_val_000000.bin", np.concatenate(documents[:50]))
    with pytest.raises(ValueError, match=r"overlap.*30 of 50"):
        open_dataset(foreign, tokenizer_path=tokenizer_path, vocab_size=400, seq_len=64)


def test_one_shared_page_is_borne_in_a_foreign_crawl_only(tmp_path: Path, tokenizer: Tokenizer):
    documents = encode_documents(tokenizer, sentences(7, 300))
    val, train = tmp_path / "fineweb_val_000000.bin", tmp_path / "fineweb_train_000000.bin"
    write_shard(val, np.concatenate(documents[:200]))
    write_shard(train, np.concatenate([*documents[200:], documents[3]]))
    assert check_overlap([train], [val], strict=False) == 1
    with pytest.raises(ValueError, match="1 of 200"):
        check_overlap([train], [val])


def test_files_that_are_not_the_manifests(dataset_target: Target):
    shard = dataset_target.folder / "fineweb_train_000000.bin"
    tokens = np.array(read_shard(shard))
    extra = dataset_target.folder / "fineweb_train_000001.bin"
    write_shard(extra, tokens)
    with pytest.raises(ValueError, match=r"1 are foreign \['fineweb_train_000001.bin'\]"):
        open_dataset(dataset_target.folder, vocab_size=400, seq_len=64)
    extra.unlink()
    write_shard(shard, tokens[:-1])
    with pytest.raises(ValueError, match="by its manifest"):
        open_dataset(dataset_target.folder, vocab_size=400, seq_len=64)
    tokens[-1] ^= 1
    write_shard(shard, tokens)
    open_dataset(dataset_target.folder, vocab_size=400, seq_len=64)  # the size is right: only `check` hashes
    with pytest.raises(ValueError, match="SHA-256"):
        check_dataset(dataset_target.folder)


def test_an_edited_manifest(dataset_target: Target):
    path = manifest_path(dataset_target.folder)
    whole = path.read_text()
    for damaged in (whole.replace('"seed": 1337', '"seed": 1'), "{}", whole[:50], "[]"):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="manifest"):
            open_dataset(dataset_target.folder, vocab_size=400, seq_len=64)


def test_another_number_of_documents_than_the_manifests(dataset_target: Target):
    manifest = read_manifest(dataset_target.folder)
    assert manifest is not None
    entry = dataclasses.replace(manifest.splits["val"], documents=50_000)
    write_manifest(
        dataset_target.folder, dataclasses.replace(manifest, splits={**manifest.splits, "val": entry})
    )
    with pytest.raises(ValueError, match="must hold 50,000 documents, but it has 30 BOS"):
        open_dataset(dataset_target.folder, vocab_size=400, seq_len=64)


def test_byte_sidecars_must_agree_with_the_tables(foreign: Path, tokenizer_path: Path, tokenizer: Tokenizer):
    # Trap 9d: transformed text scored by the tables. Where they agree, the text was not transformed.
    tokens = read_shard(foreign / "fineweb_val_000000.bin")
    dataset = open_dataset(foreign, tokenizer_path=tokenizer_path, vocab_size=400, seq_len=64)
    budget = np.concatenate([[0], count_bytes(dataset.luts, tokens[:-1], tokens[1:])])
    sidecar = foreign / "fineweb_val_bytes_000000.bin"
    write_shard(sidecar, budget)
    assert check_dataset(foreign, tokenizer_path=tokenizer_path).num_val_tokens == tokens.size
    budget[10] += 1
    write_shard(sidecar, budget)
    with pytest.raises(ValueError, match="was transformed"):
        open_dataset(foreign, tokenizer_path=tokenizer_path, vocab_size=400, seq_len=64)
    write_shard(sidecar, budget[:-1])
    with pytest.raises(ValueError, match="one value a validation token"):
        open_dataset(foreign, tokenizer_path=tokenizer_path, vocab_size=400, seq_len=64)


def test_shards_of_another_tokenizer_are_caught(foreign: Path, tokenizer_path: Path):
    generator = np.random.default_rng(0)
    tokens = np.concatenate([[1], generator.integers(4, 400, 500)])
    write_shard(foreign / "fineweb_val_000000.bin", tokens)
    with pytest.raises(ValueError, match="whole UTF-8 characters"):
        open_dataset(foreign, tokenizer_path=tokenizer_path, vocab_size=400, seq_len=64)
