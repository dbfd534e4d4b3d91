"""`corpus download` against a local server that speaks the hub's URLs: resumed, checked, skipped, refused."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import numpy as np
import pytest
import sentencepiece

from corpus.dataset import check_dataset, open_dataset
from corpus.download import Download, Hub, download
from corpus.shards import write_shard
from corpus.tokenizer import PUBLISHED_SETTINGS, Tokenizer, byte260_bytes, encode_documents
from tests.corpus.conftest import sentences
from tests.corpus.hub_server import FakeHub, serve

REPO = "someone/golf"
FOLDER = "datasets/datasets/fineweb10B_sp400"
TRAIN0, TRAIN1 = f"{FOLDER}/fineweb_train_000000.bin", f"{FOLDER}/fineweb_train_000001.bin"
MODEL = "datasets/tokenizers/fineweb_400_bpe.model"


def shard_bytes(path: Path, tokens: np.ndarray) -> bytes:
    write_shard(path, tokens)
    return path.read_bytes()


@pytest.fixture
def hub(
    tmp_path: Path, tokenizer: Tokenizer, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    documents = encode_documents(tokenizer, sentences(9, 120))
    files = {
        MODEL: tokenizer_path.read_bytes(),
        "datasets/tokenizers/fineweb_pure_byte_260.json": byte260_bytes(),
    }
    parts = {"val_000000": documents[:20], "train_000000": documents[20:70], "train_000001": documents[70:]}
    for name, part in parts.items():
        files[f"{FOLDER}/fineweb_{name}.bin"] = shard_bytes(tmp_path / "scratch.bin", np.concatenate(part))
    # What an interrupted answer held beyond whole chunks is lost; by default a chunk is 10 MB.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    with serve(FakeHub(REPO, files)) as server:
        yield server


def fetch(tmp_path: Path, hub: FakeHub, *, train_shards: int = 2, variant: str = "sp400") -> Download:
    where = Hub(repo_id=REPO, endpoint=hub.endpoint)
    return download(tmp_path / "data", variant=variant, train_shards=train_shards, hub=where)


def test_files_arrive_whole_at_the_published_places(tmp_path: Path, hub: FakeHub):
    done = fetch(tmp_path, hub)
    assert len(done.fetched) == 4
    for path, raw in hub.files.items():
        if not path.endswith(".json"):
            assert (tmp_path / "data" / path.removeprefix("datasets/")).read_bytes() == raw
    dataset = check_dataset(done.folder, seq_len=64)
    assert dataset.data_id == done.manifest.data_id
    assert dataset.num_val_documents == 20
    assert not list(tmp_path.rglob("*.part"))


def test_complete_files_are_skipped_and_more_shards_added(tmp_path: Path, hub: FakeHub):
    first = fetch(tmp_path, hub, train_shards=1)
    hub.gets.clear()
    again = fetch(tmp_path, hub, train_shards=1)
    assert (again.fetched, len(again.skipped), hub.gets) == ([], 3, [])
    assert again.manifest == first.manifest
    more = fetch(tmp_path, hub, train_shards=2)
    assert [path for path, _ in hub.gets] == [TRAIN1]
    assert len(more.manifest.splits["train"].shards) == 2
    assert more.manifest.data_id != first.manifest.data_id


def test_an_interrupted_download_is_resumed_where_it_ended(tmp_path: Path, hub: FakeHub):
    hub.fail_after[TRAIN0] = 3000
    with pytest.raises(OSError, match=r"Run the same command again to resume"):
        fetch(tmp_path, hub)
    folder = tmp_path / "data/datasets/fineweb10B_sp400"
    assert [path.stat().st_size for path in folder.glob(".*.part")] == [3000]
    assert not (folder / "manifest.json").exists()
    assert not (folder / "fineweb_train_000000.bin").exists()
    hub.fail_after.clear()
    hub.gets.clear()
    done = fetch(tmp_path, hub)
    assert (TRAIN0, "bytes=3000-") in hub.gets
    assert not any(path.endswith("val_000000.bin") for path, _ in hub.gets)
    check_dataset(done.folder)


def test_a_corrupt_file_is_detected_and_not_resumed(tmp_path: Path, hub: FakeHub):
    hub.corrupt.add(TRAIN0)
    with pytest.raises(ValueError, match=r"size and hash .*fineweb_train_000000\.bin"):
        fetch(tmp_path, hub)
    folder = tmp_path / "data/datasets/fineweb10B_sp400"
    assert not list(folder.glob(".*.part"))
    hub.corrupt.clear()
    check_dataset(fetch(tmp_path, hub).folder)


def test_a_file_damaged_on_the_disk_is_fetched_again(tmp_path: Path, hub: FakeHub):
    done = fetch(tmp_path, hub)
    shard = done.folder / "fineweb_train_000001.bin"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(ValueError, match="SHA-256"):
        check_dataset(done.folder)
    hub.gets.clear()
    fetch(tmp_path, hub)
    assert [path for path, _ in hub.gets] == [TRAIN1]
    check_dataset(done.folder)


def test_a_foreign_shard_in_the_export_is_refused(tmp_path: Path, hub: FakeHub):
    hub.files[TRAIN0] = b"no shard at all"
    with pytest.raises(ValueError, match="header of 1024 bytes"):
        fetch(tmp_path, hub)
    assert not (tmp_path / "data/datasets/fineweb10B_sp400/manifest.json").exists()


def test_a_leftover_of_other_content_is_not_continued(tmp_path: Path, hub: FakeHub):
    hub.fail_after[TRAIN0] = 3000
    with pytest.raises(OSError, match="resume"):
        fetch(tmp_path, hub)
    hub.fail_after.clear()
    hub.files[TRAIN0] = hub.files[TRAIN1]  # published anew
    hub.gets.clear()
    fetch(tmp_path, hub)
    assert (TRAIN0, None) in hub.gets


def test_small_files_are_checked_by_their_git_hash(tmp_path: Path, hub: FakeHub):
    tokens = np.array([1, 70, 71, 1, 72], dtype=np.uint16)
    for name, part in (("val", tokens), ("train", tokens + (tokens > 1))):
        path = f"datasets/datasets/fineweb10B_byte260/fineweb_{name}_000000.bin"
        hub.files[path] = shard_bytes(tmp_path / "scratch.bin", part)
    done = fetch(tmp_path, hub, train_shards=1, variant="byte260")
    assert check_dataset(done.folder).vocab_size == 260
    hub.corrupt.add("datasets/tokenizers/fineweb_pure_byte_260.json")
    done.tokenizer.unlink()
    with pytest.raises(ValueError, match="size and hash"):
        fetch(tmp_path, hub, train_shards=1, variant="byte260")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_shards": 3}, "has 2 training shards"),
        ({"train_shards": 0}, "at least 1"),
        ({"variant": "sp8192"}, "has none. Check --variant"),
        ({"variant": "gpt2"}, "A variant is"),
    ],
)
def test_what_is_not_published_is_refused(tmp_path: Path, hub: FakeHub, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        fetch(tmp_path, hub, **changes)


def test_an_unknown_repository(tmp_path: Path, hub: FakeHub):
    with pytest.raises(ValueError, match="no such one"):
        download(tmp_path / "data", variant="sp400", hub=Hub(repo_id="no/body", endpoint=hub.endpoint))


def test_a_wrong_tokenizer_in_the_export(tmp_path: Path, hub: FakeHub):
    hub.files[MODEL] = b"no model"
    with pytest.raises(ValueError, match="cannot be read as one"):
        fetch(tmp_path, hub)


def test_a_tokenizer_that_a_run_would_refuse_is_refused_before_the_shards(tmp_path: Path, hub: FakeHub):
    """Of text without spaces SentencePiece makes no piece for one."""
    words = ("".join(text.split()) for text in sentences(9, 120))
    model = io.BytesIO()
    cast(Any, sentencepiece.SentencePieceTrainer).train(
        sentence_iterator=words,
        model_writer=model,
        vocab_size=400,
        num_threads=1,
        minloglevel=2,
        **PUBLISHED_SETTINGS,
    )
    hub.files[MODEL] = model.getvalue()
    with pytest.raises(ValueError, match=r"lone piece U\+2581"):
        fetch(tmp_path, hub)
    assert not any(path.endswith(".bin") for path, _ in hub.gets)
    assert not list(tmp_path.rglob("manifest.json"))


def test_shards_that_a_run_would_refuse_are_refused(tmp_path: Path, hub: FakeHub):
    hub.files[f"{FOLDER}/fineweb_val_000000.bin"] = hub.files[TRAIN0]  # validation is training
    with pytest.raises(ValueError, match=r"disjoint|overlap|both"):
        fetch(tmp_path, hub)
    assert not list(tmp_path.rglob("manifest.json"))


def test_an_endpoint_s_password_is_not_told(tmp_path: Path):
    where = Hub(repo_id=REPO, endpoint="http://me:hush@127.0.0.1:9")
    with pytest.raises(OSError, match=r"at http://127\.0\.0\.1:9, but") as caught:
        download(tmp_path / "data", variant="sp400", hub=where)
    assert "hush" not in str(caught.value)


def test_the_command_honours_hf_endpoint(tmp_path: Path, hub: FakeHub):
    command = [sys.executable, "-m", "corpus", "download", "--variant", "sp400", "--repo", REPO]
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [*command, "--to", str(tmp_path / "d")], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "fetched 3 files" in done.stdout
    open_dataset(tmp_path / "d/datasets/fineweb10B_sp400", vocab_size=400, seq_len=64)


def test_an_absent_hub_is_an_oserror_with_a_way_out(tmp_path: Path):
    with pytest.raises(OSError, match=r"The export comes from someone/golf at http://127\.0\.0\.1:9, but"):
        download(tmp_path / "data", variant="sp400", hub=Hub(repo_id=REPO, endpoint="http://127.0.0.1:9"))
