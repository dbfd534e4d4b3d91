"""Vocabularies of 4096 and 8192 with their own tokenizer: the same bytes, one whole run each."""

import random
from pathlib import Path

import pytest
import torch

import train_gpt
from corpus import dataset
from corpus.export import Target, export_dataset
from corpus.text.documents import Split
from techniques import catalog
from techniques.config import resolve
from tests.conftest import TINY_MODEL
from trainer.seams import Seams


def texts(count: int) -> list[str]:
    """Documents over words enough for 8192 pieces."""
    rng = random.Random(3)
    words = ["".join(rng.choices("abcdefghiklmnoprstuvwy", k=rng.randint(4, 9))) for _ in range(6000)]
    return [" ".join(rng.choices(words, k=120)) for _ in range(count)]


@pytest.fixture(scope="module")
def split() -> Split:
    found = texts(220)
    return Split(val=found[:20], train=found[20:])


@pytest.mark.parametrize("vocab_size", [1024, 4096, 8192])
def test_the_validation_bytes_are_the_texts_whatever_the_tokenizer(
    tmp_path: Path, split: Split, vocab_size: int
):
    target = Target(tmp_path, "words", vocab_size)
    export_dataset(target, split, source={"kind": "text", "what": "words"})
    data = dataset.open_dataset(target.folder, vocab_size=vocab_size, seq_len=1)
    text_bytes = sum(len(text.encode()) for text in split.val)
    assert int(data.target_bytes(data.val_tokens()).sum()) == text_bytes
    assert int(data.val_tokens().max()) > vocab_size // 2
    if vocab_size > 1024:
        whole_run(target, vocab_size)


def whole_run(target: Target, vocab_size: int) -> None:
    """Train, quantise, pack and score; rows of rare pieces learn too."""
    own = {"data_path": str(target.folder), "tokenizer_path": str(target.tokenizer_path)}
    run = resolve({"file": {**TINY_MODEL, **own, "vocab_size": vocab_size}}, catalog.runtime())
    world, seams = train_gpt.World(run.config), Seams(run)
    data = dataset.open_dataset(target.folder, vocab_size=vocab_size, seq_len=32)
    trainer = train_gpt.Trainer(seams, world, data, train_gpt.Log(Path(), 1))
    before = trainer.model.tok_emb.detach().clone()
    assert before.shape == (vocab_size, 32)
    trained = trainer.run()
    moved = (trained.weights["tok_emb"] != before).any(1)
    assert bool(moved[vocab_size // 2 :].any())
    packed, _ = train_gpt.quantize(trained.weights, trainer.model, seams, ())
    artifact = train_gpt.pack(packed, run.identity(), train_gpt.ZlibCodec())
    score = train_gpt.evaluate(artifact, seams, world, data)[0]
    assert torch.isfinite(torch.tensor(score.val_bpb)) and score.bytes == int(
        data.target_bytes(data.val_tokens()).sum()
    )
    assert score.val_loss < torch.log(torch.tensor(float(vocab_size))) + 1.0
