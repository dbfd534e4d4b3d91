"""What is checked before the first trial, and what is said before it takes its time."""

from __future__ import annotations

from pathlib import Path

import pytest

from corpus import embedded
from search.workers import prepare


def test_the_corpus_is_announced_before_it_is_built_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "ROOT", tmp_path)
    told: list[str] = []

    def build(data: Path, variant: str) -> None:
        assert len(told) == 1 and told[0].startswith("corpus: built once") and variant == "sp1024"
        raise OSError(28, "No space left on device", str(data))

    monkeypatch.setattr(embedded, "ensure", build)
    place = ("data/datasets/embedded_sp1024", "data/tokenizers/embedded_1024_bpe.model")
    with pytest.raises(ValueError, match="No space left on device"):
        prepare.check_data(*place, vocab_size=1024, seq_len=8, say=told.append)
    monkeypatch.setattr(prepare, "is_complete", lambda folder: True)
    monkeypatch.setattr(embedded, "ensure", lambda data, variant: None)
    with pytest.raises(ValueError):  # it is not there
        prepare.check_data(*place, vocab_size=1024, seq_len=8, say=told.append)
    assert len(told) == 1
