"""`corpus build`: every kind of file, the same dataset for the same text, one error for each bad input."""

import gzip
import itertools
import json
import lzma
import random
from pathlib import Path

import numpy as np
import pytest
import zstandard

from corpus.build import BuildOptions, build, count_validation, read_documents, text_files
from corpus.dataset import check_dataset
from corpus.export import Target
from corpus.manifest import read_manifest
from corpus.shards import read_shard, write_shard
from corpus.tokenizer import fitted, load_tokenizer
from tests.corpus.conftest import sentences

BOOKS = Path(__file__).parents[2] / "../shared/data/books.jsonl.xz"


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts)).encode()


COMPRESS = {
    ".jsonl": lambda raw: raw,
    ".jsonl.xz": lzma.compress,
    ".jsonl.gz": gzip.compress,
    ".jsonl.zst": lambda raw: zstandard.compress(raw[:500]) + zstandard.compress(raw[500:]),
}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_compression_gives_the_same_documents(tmp_path: Path, suffix: str):
    texts = [*sentences(5, 50), "two\nlines", "ends without newline"]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(COMPRESS[suffix](jsonl(texts).rstrip()))
    assert read_documents(path) == texts


@pytest.mark.parametrize("suffix", [s for s in COMPRESS if s != ".jsonl"])
def test_cut_off_files_are_refused(tmp_path: Path, suffix: str):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(COMPRESS[suffix](jsonl(sentences(5, 50)))[:-20])
    with pytest.raises(ValueError, match=r"must be whole"):
        read_documents(path)


def test_folders_are_read_in_order_and_only_text(tmp_path: Path):
    for name in ("b.txt", "a/z.md", "a/c.jsonl", "image.png", "data.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = [path.relative_to(tmp_path).as_posix() for path in text_files([tmp_path, tmp_path / "b.txt"])]
    assert found == ["a/c.jsonl", "a/z.md", "b.txt"]


def test_plain_text_is_cut_at_blank_lines(tmp_path: Path):
    path = tmp_path / "x.txt"
    path.write_bytes("\ufeffone\n\ntwo\n\nthree".encode())
    assert read_documents(path) == ["one\n\ntwo\n\nthree"]
    assert read_documents(path, max_bytes=8) == ["one\n\ntwo", "three"]


def test_the_dataset_is_the_text(dataset_target: Target):
    tokenizer = load_tokenizer(dataset_target.tokenizer_path, vocab_size=400)
    texts: list[str] = []
    for split in ("val", "train"):
        tokens = read_shard(dataset_target.folder / f"fineweb_{split}_000000.bin")
        starts = np.flatnonzero(tokens == 1)
        pieces = np.split(tokens, starts[1:])
        texts += [tokenizer.decode(piece[1:].tolist()) for piece in pieces]
        assert len(pieces) == {"val": 30, "train": 270}[split]
    expected = [text.replace("²", "2") for text in sentences(2, 300)]  # NFKC
    assert sorted(texts) == sorted(expected)


def test_the_same_again_changes_nothing_and_another_is_refused(dataset_target: Target, tmp_path: Path):
    source = tmp_path / "tale.jsonl"
    shard = dataset_target.folder / "fineweb_train_000000.bin"
    stamp = shard.stat().st_mtime_ns
    options = BuildOptions(val_documents=30)
    manifest = build(dataset_target, [source], options=options)
    assert shard.stat().st_mtime_ns == stamp
    other = BuildOptions(val_documents=31)
    with pytest.raises(ValueError, match=rf"already holds {manifest.data_id}.*--force"):
        build(dataset_target, [source], options=other)
    assert read_manifest(dataset_target.folder) == manifest
    forced = build(dataset_target, [source], options=BuildOptions(val_documents=31, force=True))
    assert forced.data_id != manifest.data_id
    assert forced.splits["val"].documents == 31


def test_foreign_shards_are_not_overwritten(tmp_path: Path):
    target = Target(tmp_path / "data", "tale", 400)
    target.folder.mkdir(parents=True)
    write_shard(target.folder / "fineweb_train_000000.bin", np.array([1, 2]))
    (tmp_path / "t.txt").write_text("\n\n".join(sentences(2, 300)))
    with pytest.raises(ValueError, match="did not write"):
        build(target, [tmp_path / "t.txt"])
    (target.folder / ".building").touch()  # a build of ours was cut off here
    assert build(target, [tmp_path / "t.txt"]).splits["train"].tokens > 1000


def prose(alphabet: str, seed: int, *, lines: int, length: int = 60, spaced: int = 0) -> str:
    """Paragraphs of characters by Zipf's law; the first `spaced` of them have spaces."""
    generator = random.Random(seed)
    weights = [1.0 / (k + 1) for k in range(len(alphabet))]
    texts = ["".join(generator.choices(alphabet, weights, k=length)) for _ in range(lines)]
    return "\n\n".join(" ".join(t) if k < spaced else t for k, t in enumerate(texts))


CHINESE = (
    "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行"
    "过家十用发天如然作方成者多日都三小军二无同么经法当起与好看学进种将还分此心前面又定见只主没公从"
    + "".join(map(chr, range(0x5000, 0x5258)))
)
JAPANESE = "".join(map(chr, [*range(0x3041, 0x3094), *range(0x30A1, 0x30F7), *range(0x4E00, 0x4F80)]))
EMOJI = "".join(map(chr, range(0x1F600, 0x1F640)))


@pytest.mark.parametrize(
    ("alphabet", "spaced"), [(CHINESE, 0), (CHINESE, 3), (JAPANESE, 0), (EMOJI, 0), (EMOJI + "ab", 3)]
)
def test_text_of_many_characters_and_few_spaces_builds(tmp_path: Path, alphabet: str, spaced: int):
    """More characters than pieces: the frequent ones are pieces, the others bytes; the space is a piece."""
    (tmp_path / "t.txt").write_text(prose(alphabet, 1, lines=300, spaced=spaced), encoding="utf-8")
    target = Target(tmp_path / "data", "cjk", 400)
    build(target, [tmp_path / "t.txt"], options=BuildOptions(max_document_bytes=600))
    assert check_dataset(target.folder).num_val_tokens
    tokenizer = load_tokenizer(target.tokenizer_path, vocab_size=400)
    pieces = {tokenizer.id_to_piece(k) for k in range(400)}
    assert {"\u2581", *alphabet[:40]} <= pieces
    assert any(len(piece) == 2 for piece in pieces), "there is room for merges"
    text = f"{alphabet[:3]} {alphabet[-1]}"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_that_fits_is_tokenized_as_before():
    """The settings of the published tokenizers, to the byte of the model."""
    texts = sentences(3, 100)
    assert fitted(texts, 400, lossless=False) == (texts, {})
    assert fitted([], 400, lossless=False) == ([], {})


def test_several_shards(tmp_path: Path):
    (tmp_path / "t.txt").write_text("\n\n".join(sentences(2, 300)))
    target = Target(tmp_path / "data", "tale", 400, shard_tokens=5000)
    manifest = build(target, [tmp_path / "t.txt"], options=BuildOptions(max_document_bytes=2000))
    assert len(manifest.splits["train"].shards) > 2
    assert {shard.tokens for shard in manifest.splits["train"].shards[:-1]} == {5000}
    assert check_dataset(target.folder).num_train_tokens == manifest.splits["train"].tokens


def test_duplicates_never_reach_both_splits(tmp_path: Path):
    texts = sentences(2, 200)
    (tmp_path / "t.jsonl").write_bytes(jsonl(texts + [text.replace(" ", "\n ") for text in texts]))
    # Full-width letters: other text, the same tokens after normalisation.
    wide = "".join(chr(ord(c) + 0xFEE0) if c.isascii() and c.isalpha() else c for c in texts[0])
    (tmp_path / "u.jsonl").write_bytes(jsonl([wide]))
    target = Target(tmp_path / "data", "tale", 400)
    for seed in range(3):
        options = BuildOptions(val_frac=0.5, seed=seed, force=True)
        build(target, [tmp_path / "t.jsonl", tmp_path / "u.jsonl"], options=options)
        check_dataset(target.folder)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("x.txt", b"", "hold none"),
        ("x.txt", b" \n\n\t", "hold none"),
        ("x.txt", b"caf\xe9 and more", "must be UTF-8.*byte 3"),
        ("x.jsonl", b'{"text": "caf\xe9"}', "must be UTF-8.*line 1"),
        ("x.jsonl", b'{"text": "\\ud800"}', "lone surrogate"),
        ("x.jsonl", b'{"text": "ok"}\n{"text"', "line 2 is none"),
        ("x.jsonl", b'{"content": "x"}', r"line 1 has the keys \['content'\]"),
        ("x.jsonl", b"[1]", "has a list"),
        ("x.jsonl", b'{"text": 5}', "line 1 has"),
        ("x.pdf", b"x", "of the kinds"),
        ("x.jsonl.gz", b"no gzip", "damaged"),
        ("x.jsonl.xz", b"no xz", "damaged"),
        ("x.jsonl.zst", b"no zstd", "damaged"),
        ("x.txt", b"one small text", "Both splits need a document"),
    ],
)
def test_bad_text(tmp_path: Path, name: str, raw: bytes, message: str):
    (tmp_path / name).write_bytes(raw)
    target = Target(tmp_path / "data", "x", 400)
    with pytest.raises(ValueError, match=message):
        build(target, [tmp_path / name])
    assert not list(target.root.rglob("*.bin"))


def test_bad_paths_and_options(tmp_path: Path):
    target = Target(tmp_path / "data", "x", 400)
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "absent", "does not exist"), (tmp_path / "empty", "has none")):
        with pytest.raises(ValueError, match=message):
            build(target, [path])
    with pytest.raises(ValueError, match="no path was given"):
        build(target, [])
    for options in (BuildOptions(1, 0.5), BuildOptions(None, 1.5), BuildOptions(max_document_bytes=3)):
        with pytest.raises(ValueError, match="--"):
            build(target, [tmp_path], options=options)


def test_text_too_small_for_the_vocabulary_leaves_no_dataset(tmp_path: Path):
    (tmp_path / "t.jsonl").write_bytes(jsonl(["the cat", "the dog", "a bird"]))
    target = Target(tmp_path / "data", "x", 1024)
    with pytest.raises(ValueError, match="vocabulary of 1024 needs text"):
        build(target, [tmp_path / "t.jsonl"])
    assert read_manifest(target.folder) is None


def test_validation_by_number_share_and_default():
    texts = ["x" * 100] * 50
    assert count_validation(texts, BuildOptions(val_documents=7)) == 7
    assert count_validation(texts, BuildOptions(val_frac=0.1)) == 5
    assert count_validation(texts, BuildOptions()) == 5
    assert count_validation(["x" * 10_000] * 2000, BuildOptions()) == 48
    for number in (0, 50, 99):
        with pytest.raises(ValueError, match=f"would take {number} of 50"):
            count_validation(texts, BuildOptions(val_documents=number))


@pytest.mark.skipif(not BOOKS.exists(), reason="the shared books are not here")
def test_real_books(tmp_path: Path):
    with lzma.open(BOOKS) as file:
        (tmp_path / "b.jsonl").write_bytes(b"".join(itertools.islice(file, 200)))
    target = Target(tmp_path / "data", "books", 1024)
    build(target, [tmp_path / "b.jsonl"])
    dataset = check_dataset(target.folder, seq_len=256)
    assert 2.0 < dataset.byte_check.num_bytes / dataset.num_val_tokens < 3.0
