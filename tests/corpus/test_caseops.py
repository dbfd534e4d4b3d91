"""CaseOps: exact on any text, through the tokenizer too; counts are the bytes of the original text."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from corpus import caseops
from corpus.build import BuildOptions, build
from corpus.caseops import ALLCAPS, CAPNEXT, ESC, OPERATORS, TITLE
from corpus.dataset import Dataset, check_dataset, open_dataset
from corpus.export import Target, export_dataset
from corpus.shards import read_shard, shard_paths, sidecar_paths, write_shard
from corpus.text.documents import Split
from corpus.tokenizer import Tokenizer, load_tokenizer
from tests.corpus.conftest import sentences

WEIRD = (
    "abcABCzZ  \n\t__\u2581\u2581" + OPERATORS + "éÉßİıǅﬁＡａ\u200b\u0301\U0001f600\x00\x7f\u00a0\u3000"
    "'129.,\ue005\ue000\ufeff\ufffd\u2028ΑαЖж\U0010ffff<s>"
)


def weird_text(generator: random.Random, *, known: float = 0.8) -> str:
    """Any characters that UTF-8 holds, many of them those that matter here."""

    def character() -> str:
        if generator.random() < known:
            return generator.choice(WEIRD)
        code = generator.randrange(0x110000 - 0x800)
        return chr(code if code < 0xD800 else code + 0x800)

    return "".join(character() for _ in range(generator.randrange(1, 40)))


def documents() -> list[str]:
    """Prose in every kind of case, and documents of odd characters, all different."""
    generator = random.Random(3)
    plain = [
        " ".join(generator.choice((str.lower, str.title, str.upper, str.swapcase))(w) for w in text.split())
        for text in sentences(4, 120)
    ]
    odd = [
        f"McDonald's iPhone №{i} " + "".join(weird_text(generator, known=1.0) for _ in range(6))
        for i in range(40)
    ]
    return [*plain, *odd, "  two  leading spaces, NONE lost  ", "\n\n\u2581_\u2581 A\n"]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    root = tmp_path_factory.mktemp("caseops")
    target = Target(root, "tale", vocab_size=440, caseops=True, shard_tokens=3000)
    texts = documents()
    random.Random(1).shuffle(texts)
    export_dataset(target, Split(val=texts[:60], train=texts[60:]), source={"kind": "text", "what": "tests"})
    return target


@pytest.fixture(scope="module")
def tokenizer(target: Target) -> Tokenizer:
    return load_tokenizer(target.tokenizer_path, vocab_size=440)


def opened(target: Target) -> Dataset:
    return open_dataset(target.folder, vocab_size=440, seq_len=16)


@pytest.mark.parametrize(
    ("text", "transformed"),
    [
        ("the end", "the end"),
        ("The End", f"{TITLE}the {TITLE}end"),
        ("NASA's A-B", f"{ALLCAPS}nasa's {TITLE}a-{TITLE}b"),
        ("iPhone", f"i{CAPNEXT}phone"),
        ("McDonald", f"{TITLE}mc{CAPNEXT}donald"),
        ("ABc", f"{TITLE}a{CAPNEXT}bc"),
        ("É9ÉA", f"É9É{TITLE}a"),
        (f"x{TITLE}y{ESC}", f"x{ESC}{TITLE}y{ESC}{ESC}"),
        ("\u2581_", f"{ESC}__"),
        ("", ""),
    ],
)
def test_the_published_rule(text: str, transformed: str):
    assert caseops.encode(text) == transformed and caseops.decode(transformed) == text


def test_any_text_comes_back():
    generator = random.Random(0)
    for _ in range(1500):
        text = weird_text(generator)
        transformed = caseops.encode(text)
        assert caseops.decode(transformed) == text
        assert not any(c.isascii() and c.isupper() for c in transformed) and "\u2581" not in transformed


NO_TRANSFORMS = ("A", f"{TITLE}9", ESC, f"{ALLCAPS}a", f"{CAPNEXT}a", f"a{TITLE}b", f"{ESC}x")


@pytest.mark.parametrize("text", NO_TRANSFORMS)
def test_what_no_text_becomes_is_refused(text: str):
    with pytest.raises(ValueError, match=r"encode\(\) never writes"):
        caseops.decode(text)


def slow_bytes(tokenizer: Tokenizer, tokens: list[int], text: str) -> list[int]:
    """The obvious way: walk through the original's characters and the tokens' characters side by side."""
    out, transformed, at, left = [], caseops.encode(text), 0, b""
    escaped = False
    for token in tokens:
        total = 0
        if tokenizer.is_byte(token):
            left = left or transformed[at].encode()
            total, left = 1, left[1:]
            at += not left
        else:
            for c in tokenizer.id_to_piece(token).replace("\u2581", " "):
                assert transformed[at] == c
                if escaped:
                    total += 3
                elif c not in OPERATORS:
                    total += len(c.encode())
                escaped = c == ESC and not escaped
                at += 1
        out.append(total)
    assert at == len(transformed) and sum(out) == len(text.encode())
    return out


def test_tokens_count_the_bytes_of_the_original(tokenizer: Tokenizer):
    generator = random.Random(5)
    texts = [weird_text(generator) for _ in range(400)]
    ids = [[1, *tokenizer.encode(caseops.encode(text))] for text in texts]
    counted = caseops.token_bytes(tokenizer, np.array([i for one in ids for i in one], dtype=np.uint16))
    expected: list[int] = []
    for one, text in zip(ids, texts, strict=True):
        expected += [0, *slow_bytes(tokenizer, one[1:], text)]
    assert counted.tolist() == expected
    flat = np.array([i for one in ids for i in one], dtype=np.uint16)
    assert caseops.decode_documents(tokenizer, flat) == texts


def test_the_dataset_is_the_text_and_its_bytes(target: Target, tokenizer: Tokenizer):
    data = opened(target)
    val = data.val_tokens()
    tokens = np.concatenate([read_shard(path) for path in shard_paths(target.folder, "val")])
    texts = caseops.decode_documents(tokenizer, tokens)
    assert (
        set(texts) <= set(documents()) and len(texts) == 60 and len(data.sidecars) == len(data.val_paths) > 1
    )
    sidecar = np.concatenate([read_shard(path) for path in sidecar_paths(target.folder)])
    assert int(sidecar.sum()) == sum(len(text.encode()) for text in texts)
    assert not sidecar[tokens == 1].any()
    assert np.array_equal(data.target_bytes(val), sidecar[1 : val.size])
    checked = check_dataset(target.folder).byte_check
    assert checked.complete and checked.num_bytes == int(sidecar.sum())
    assert (
        target.folder.name == "tale_sp440_caseops"
        and target.tokenizer_path.name == "tale_440_caseops_bpe.model"
    )


def test_changed_or_missing_sidecars_are_refused(target: Target):
    path = sidecar_paths(target.folder)[0]
    raw, counts = path.read_bytes(), read_shard(path).copy()
    try:
        counts[7] += 1
        write_shard(path, counts)
        with pytest.raises(ValueError, match="must hold the bytes of each token's original text"):
            opened(target)
        path.unlink()
        with pytest.raises(ValueError, match="CaseOps data are scored by byte sidecars"):
            opened(target)
    finally:
        path.write_bytes(raw)
    opened(target)


def test_build_writes_it_and_the_same_again_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from corpus.__main__ import main

    text = tmp_path / "x.jsonl"
    text.write_text("".join(json.dumps({"text": t}) + "\n" for t in documents()), encoding="utf-8")
    command = ["corpus", "build", "--text", str(text), "--to", str(tmp_path / "data"), "--vocab-size", "440"]
    monkeypatch.setattr(sys, "argv", [*command, "--val-docs", "30", "--caseops"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    target = Target(tmp_path / "data", "x", vocab_size=440, caseops=True)
    before = target.folder.stat().st_mtime_ns
    manifest = build(target, [text], options=BuildOptions(val_documents=30))
    assert manifest.source["transform"] == "caseops" and target.folder.stat().st_mtime_ns == before
    plain = Target(tmp_path / "data", "x", vocab_size=260, caseops=True)
    with pytest.raises(ValueError, match="needs operators in the vocabulary"):
        build(plain, [text], options=BuildOptions(val_documents=30))


def test_a_score_divides_by_the_original_bytes(target: Target):
    import math

    import torch

    import train_gpt
    from techniques.config import resolve

    data = opened(target)
    tiny = {"vocab_size": 440, "num_layers": 1, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1}
    tiny |= {"train_seq_len": 16, "train_batch_tokens": 128, "device": "cpu", "val_batch_size": 256}
    run = resolve({"file": {**tiny, "caseops": True, "compute_dtype": "float32"}}, {})
    torch.manual_seed(0)
    world = train_gpt.World(run.config)
    world.ledger.watch(target.folder)
    world.ledger.at("train", "steps")
    score = train_gpt.score_plainly(train_gpt.build_model(run), world, data, run.config, limit=512)
    assert {e["reader"] for e in world.ledger.summary()} == {"report"}, "a report's sidecar, not the steps'"
    assert world.ledger.findings() == []
    tokens = data.val_tokens(max_tokens=513)
    assert score.tokens == 512 and score.bytes == int(data.target_bytes(tokens).sum())
    assert score.val_bpb == pytest.approx(score.val_loss * 512 / math.log(2) / score.bytes)
