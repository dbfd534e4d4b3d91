"""What counts no byte, and what hides behind a vocabulary of specials, is caught."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from conformance.lab import Lab, write_corpus
from techniques.base import Technique
from techniques.compression.lzma_xz import LzmaXz
from techniques.evaluation import token_tilt
from tests.conformance.planted_memory import PlantedDictionary, PlantedShift
from tests.conformance.test_planted_defects import failures


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Lab(write_corpus(tmp_path_factory.mktemp("memory")))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("cls", [PlantedDictionary, PlantedShift])
def test_what_stands_beside_the_artifact_is_caught(lab: Lab, cls: type[Technique]) -> None:
    assert list(failures(lab, cls, "same score", "reload", "container", "same file")) == ["same score"]


def test_a_codec_that_keeps_nothing_passes(lab: Lab) -> None:
    assert failures(lab, LzmaXz, "same score", "container") == {}


def test_a_tilt_that_is_no_distribution_is_caught(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Towards everything but the special tokens, and not normalised."""

    def tilt(logits: Any, targets: Any, hints: Any, strengths: Any, fade: float = 0.0) -> Any:
        nats = -F.log_softmax(logits.float(), -1).gather(-1, targets[..., None])[..., 0]
        return nats - strengths * ((targets == hints) & (hints >= 4))

    monkeypatch.setattr(token_tilt, "tilt_nats", tilt)
    found = failures(lab, token_tilt.TokenTilt, "score-first")
    assert "normalisation" in found["score-first"]
