"""Planted defects of what is read, when and by whom; of artifacts that know the validation split; of seeds,
data orders, steps and settings that are not what is said."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import train_gpt
from conformance import suite
from conformance.lab import Lab, write_corpus
from conformance.subject import Subject
from corpus import dataset
from techniques.base import Choice, Legality, Technique, Verdict, setting
from techniques.evaluation.lora_ttt import LoraTtt
from techniques.evaluation.score_first_ttt import ScoreFirstTtt, TttScorer
from trainer.artifact import RoundToNearest
from trainer.audit import Audit
from trainer.ledger import Ledger
from trainer.stream import BlockStream, TokenStream


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Lab(write_corpus(tmp_path_factory.mktemp("reads")))
    torch.set_num_threads(threads)


def failures(lab: Lab, cls: type[Technique], *only: str, **settings: Any) -> dict[str, str]:
    """check -> reason of what failed."""
    report = suite.run(cls, settings, lab=lab, only=only)
    return {o.check: o.reason for o in report.outcomes if o.status == "failed"}


class Rows:
    """Sequences side by side, each scored once; `look` may change the hidden states of a batch."""

    facts: ClassVar[dict[str, Any]] = {}

    def __init__(self, look: Any = None):
        self.look = look

    @torch.no_grad()
    def score(self, run: Any) -> None:
        t = run.seq_len
        starts = list(range(0, run.num_positions - t + 1, t))
        batches = [starts[i : i + run.batch_seqs] for i in range(0, len(starts), run.batch_seqs)]
        tail = run.num_positions % t
        for batch, length in [
            *((b, t) for b in batches),
            *([([run.num_positions - tail], tail)] if tail else []),
        ]:
            ids, targets = run.windows(batch, length)
            h = run.hidden(ids)
            h = h if self.look is None else self.look(run, batch, h)
            for start, nll in zip(batch, run.nats(h, targets), strict=True):
                run.write(start, nll)


def last_row_of_eight(run: Any, batch: list[int], h: torch.Tensor) -> torch.Tensor:
    """The last row of a batch of eight or more sees one token of the future."""
    if len(batch) < 8:
        return h
    ahead = run.model.hidden(run.windows([batch[-1]], run.seq_len)[1])
    return torch.cat((h[:-1], (h[-1:] + ahead) / 2))


def next_sequence(run: Any, batch: list[int], h: torch.Tensor) -> torch.Tensor:
    """Every row sees the first token of the next sequence."""
    ends = [min(start + h.size(1) + 1, run.num_positions) for start in batch]
    return h + 0.01 * run.stream[ends].to(h.device)[:, None, None]


class PlantedRows(Technique):
    name = "planted_rows"
    legality = Legality(Verdict.LEGAL, "test")
    null: ClassVar[dict[str, Any]] = {}
    look: ClassVar[Any] = None

    def scorer(self) -> Any:
        return Rows(type(self).look and functools.partial(type(self).look))


class LastRow(PlantedRows):
    look = last_row_of_eight


class NextSequence(PlantedRows):
    look = next_sequence


def test_a_last_row_that_sees_a_token_ahead_is_caught_by_batches_of_sixteen(lab: Lab) -> None:
    found = failures(lab, LastRow, "coverage", "score-first", "batches", "one forward", "failing")
    assert found.keys() == {"batches"} and "16 sequences side by side" in found["batches"]
    assert failures(lab, PlantedRows, "coverage", "score-first", "batches", "one forward", "failing") == {}


class BatchRows(PlantedRows):
    """From a width of eight on its scores are others, though that only says how many go side by side."""

    batching: ClassVar[tuple[str, ...]] = ("width",)

    @dataclass(frozen=True)
    class Config:
        width: int = setting(2, "sequences side by side", low=1)

    def scorer(self) -> Any:
        width = self.config.width
        return Rows(lambda run, batch, h: h * (1.01 if width >= 8 else 1.0))


def test_a_setting_of_batches_that_moves_scores_is_caught(lab: Lab) -> None:
    assert "with width = 16 side by side" in failures(lab, BatchRows, "batches")["batches"]


def test_a_look_ahead_is_found_when_a_run_scores_its_sample_again(lab: Lab) -> None:
    (told,) = Subject(lab, NextSequence, known={}).run().findings
    assert "of 256 scores of planted_rows moved with tokens behind them" in told
    assert Subject(lab, PlantedRows, known={}).run().findings == []


# -- test-time training ahead of its scores ----------------------------------------------------------------


class LateThief(TttScorer):
    """From the twelfth chunk on it reads the stream itself, and trains on the next chunk as well."""

    def train_on(self, run: Any, chunk: int, optimizer: Any, trained: Any) -> None:
        super().train_on(run, chunk, optimizer, trained)
        first = (chunk + 1) * self.config.chunk_tokens
        with torch.no_grad():
            part = run.tokens[first : first + run.seq_len + 1].long().to(run.world.device)
        if chunk >= 11 and len(part) > run.seq_len:
            optimizer.zero_grad()
            run.model(part[None, :-1], part[None, 1:]).backward()
            optimizer.step()


class LateTtt(ScoreFirstTtt):
    def scorer(self) -> Any:
        return LateThief(self.config)


def test_training_ahead_from_the_twelfth_chunk_on_is_caught(lab: Lab) -> None:
    told = failures(lab, LateTtt, "score-first")["score-first"]
    assert "future: tokens from" in told and "early: " in told


# -- errors that are swallowed, and adaptation that never happens ------------------------------------------


class Forgiving(TttScorer):
    def score(self, run: Any) -> None:
        try:
            super().score(run)
        except RuntimeError:
            run.written.zero_()
            Rows().score(run)


class FallsBack(ScoreFirstTtt):
    def scorer(self) -> Any:
        return Forgiving(self.config)


class SilentSteps(ScoreFirstTtt):
    """Does not say to how many chunks it adapted."""

    def scorer(self) -> Any:
        scorer = super().scorer()
        scorer.facts = {k: 0 for k in scorer.facts if k != "adapted"}
        scorer.train_on = functools.partial(silent, scorer)  # type: ignore[assignment]
        return scorer


def silent(scorer: Any, *args: Any) -> None:
    scorer.facts["adapted"] = 0
    TttScorer.train_on(scorer, *args)
    del scorer.facts["adapted"]


def test_a_scorer_that_swallows_an_error_is_caught(lab: Lab) -> None:
    assert "failed, and the scorer went on" in failures(lab, FallsBack, "failing")["failing"]
    assert "`adapted`" in failures(lab, SilentSteps, "failing")["failing"]
    assert failures(lab, LoraTtt, "failing") == {}


def test_adapting_to_nothing_is_a_finding() -> None:
    audit = Audit(["lora_ttt"])
    audit.note("lora_ttt", adapted=3)
    assert audit.findings() == []
    audit.note("lora_ttt", adapted=0)
    assert "adapted to nothing" in audit.findings()[0]


# -- claims by setting -------------------------------------------------------------------------------------


class OneCleanOneNot(Technique):
    """Contested; it says that `clean` is a strict prefix."""

    name = "planted_claim"
    legality = Legality(Verdict.CONTESTED, "test")
    space: ClassVar[dict[str, Any]] = {"mask": Choice(("scored", "clean"))}
    clean_look: ClassVar[Any] = None

    @dataclass(frozen=True)
    class Config:
        mask: str = setting("clean", "what it looks at", choices=("scored", "clean"))

    @property
    def strict_prefix(self) -> bool:
        return self.config.mask == "clean"

    def scorer(self) -> Any:
        return Rows(next_sequence if self.config.mask == "scored" else type(self).clean_look)


class NoneClean(OneCleanOneNot):
    clean_look = staticmethod(next_sequence)


def test_the_clean_variant_of_a_contested_technique_is_checked(lab: Lab) -> None:
    assert failures(lab, OneCleanOneNot, "score-first") == {}
    assert "but a strict prefix is claimed" in failures(lab, NoneClean, "score-first")["score-first"]


# -- an artifact that knows the validation split -----------------------------------------------------------


class Kept:
    """What somebody kept of a map that was opened while reading was allowed."""

    tokens: ClassVar[Any] = None


class KeepsValidation(Technique):
    name = "planted_keeper"
    stage = "quantize"

    def quantizer(self) -> Any:
        quantizer = RoundToNearest()
        quantizer.calibrate = lambda model, batches: model.skip_weights.data.mul_(
            1 + float(np.mean(Kept.tokens))
        )
        plain = quantizer.quantize
        quantizer.quantize = lambda name, weight, bits, rule: plain(
            name, weight * (1 + 1e-3 * (np.sum(Kept.tokens) % 97)), bits, rule
        )
        return quantizer


def test_calibration_on_validation_tokens_that_were_kept_is_caught(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = dataset.open_dataset

    def keep(*args: Any, **kwargs: Any) -> Any:
        data = opened(*args, **kwargs)
        Kept.tokens = data.val_tokens()[:5000].copy()  # a map that stays open is on the ledger
        return data

    monkeypatch.setattr(dataset, "open_dataset", keep)
    fresh = Lab(lab.folder)
    assert "artifact is another" in failures(fresh, KeepsValidation, "blind")["blind"]
    assert failures(fresh, KeepsValidation, "reads") == {}  # the ledger cannot see it


def test_a_report_on_other_tokens_is_a_finding() -> None:
    ledger = Ledger()
    tokens = torch.arange(9, dtype=torch.int32)
    for count, told in ((5, 0), (5, 0), (6, 1)):
        ledger.note("val", 0, count, tokens=tokens[:count])
        ledger.same_tokens("report")
        assert len([f for f in ledger.findings() if "a report scored" in f]) == told


def test_code_that_runs_and_is_not_counted_is_caught(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = train_gpt.source_files
    assert failures(lab, PlantedRows, "counted code") == {}
    monkeypatch.setattr(
        train_gpt, "source_files", lambda resolved: [p for p in counted(resolved) if p.name != "muon.py"]
    )
    assert "trainer/muon.py" in failures(lab, PlantedRows, "counted code")["counted code"]


# -- training that no clock sees ---------------------------------------------------------------------------


class Untimed(Technique):
    """Once a model is whole, at `place`, it trains that on data that nobody times."""

    name = "planted_untimed"
    place: ClassVar[str] = ""
    shard: ClassVar[Any] = None

    def init(self, model: Any) -> None:
        self.model = model
        if self.place == "init":
            np.fromfile(self.shard, dtype=np.uint16)

    def work(self, place: str) -> None:
        if place == self.place:
            with torch.no_grad():
                self.model.skip_weights.mul_(0.999)

    def loader(self, shards: Any, seed: int, longest: int) -> Any:
        self.work("loader")
        return TokenStream(shards)

    def stepper(self, model: Any) -> Any:
        self.work("stepper")
        return lambda *_: self.work("step")

    def loss_terms(self, shape: Any) -> Any:
        def term(loss: Any, *_: Any) -> Any:
            if not torch.is_grad_enabled():
                self.work("audit")
            return loss

        return term


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("init", "train: model read a training shard that it may not read there"),
        ("loader", "train: weights moved beside the timed steps, under build"),
        ("stepper", "train: weights moved beside the timed steps, under build"),
        ("audit", "train: weights moved beside the timed steps, under audit"),
        ("step", ""),
    ],
)
def test_training_beside_the_timed_steps_is_a_finding(
    lab: Lab, place: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Untimed, "place", place)
    monkeypatch.setattr(Untimed, "shard", lab.data.train_paths[0])
    found = failures(lab, Untimed, "reads").get("reads", "")
    assert found.startswith(told) and bool(found) is bool(told)


# -- seeds, orders, steps, averages ------------------------------------------------------------------------


class SameSeed(Technique):
    """Its table is drawn from a generator of its own, whatever the seed."""

    name = "planted_table"

    def init(self, model: Any) -> None:
        weight = model.blocks[0].mlp.fc.weight
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(7)))


def test_an_initialisation_that_ignores_the_seed_is_caught(lab: Lab) -> None:
    assert "same values from seeds" in failures(lab, SameSeed, "seeds")["seeds"]


class PlantedOrder(Technique):
    name = "planted_order"
    flaw: ClassVar[str] = ""

    def loader(self, shards: Any, seed: int, longest: int) -> Any:
        flaw = self.flaw

        class Blocks(BlockStream):
            def load(self, state: dict[str, Any]) -> None:
                super().load(state)
                if flaw == "forgets":
                    self.pending = []

        def permute(n: int, rng: Any) -> Any:
            if flaw == "fixed":
                rng = np.random.default_rng(3)
            return np.minimum(rng.permutation(n), n - 2) if flaw == "twice" else rng.permutation(n)

        def pick(left: Any, n: int, _batch: int, rng: Any) -> Any:
            counts = rng.multivariate_hypergeometric(left, n)
            return rng.permutation(np.repeat(np.arange(len(left)), counts))

        seed = 5 if flaw == "seedless" else seed
        return Blocks(shards, block=longest, seed=seed, permute=permute, pick=pick)


@pytest.mark.parametrize(
    ("flaw", "told"),
    [
        ("", ""),
        ("forgets", "goes on from its state"),
        ("seedless", "no setting of it depends on the seed"),
        ("twice", "are a target twice"),
    ],
)
def test_a_data_order_that_is_not_what_it_says_is_caught(
    lab: Lab, flaw: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlantedOrder, "flaw", flaw)
    found = failures(lab, PlantedOrder, "order")
    assert told in found.get("order", "") and bool(found) is bool(flaw)


def test_a_momentum_warm_up_that_never_moves_is_caught(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failures(lab, PlantedRows, "steps") == {}
    still = functools.partial(train_gpt.Hyper, muon_momentum_start=0.95)
    monkeypatch.setattr(train_gpt, "Hyper", still)
    assert "has momentum 0.95, the formula 0.85" in failures(lab, PlantedRows, "steps")["steps"]


class Overshoots:
    """A bias correction that is none."""

    facts: ClassVar[dict[str, Any]] = {}

    def __init__(self, model: Any):
        self.model = model

    def update(self, model: Any, lr_scale: float) -> None:
        pass

    def weights(self) -> dict[str, torch.Tensor]:
        return {n: 1.01 * p.detach() for n, p in self.model.named_parameters()}


class PlantedAverage(Technique):
    name = "planted_average"
    stage = "average"

    def averager(self, model: Any, num_steps: int) -> Any:
        return Overshoots(model)


def test_an_average_outside_of_what_was_averaged_is_caught(lab: Lab) -> None:
    assert "outside of the values" in failures(lab, PlantedAverage, "average")["average"]


class DeadSetting(Technique):
    """Its strength is read by nobody."""

    name = "planted_dead"
    space: ClassVar[dict[str, Any]] = {"scale": Choice((1.0, 0.5)), "strength": Choice((1, 2))}

    @dataclass(frozen=True)
    class Config:
        scale: float = setting(1.0, "a factor", low=0.0, high=2.0)
        strength: int = setting(1, "another", low=1, high=9)

    def lr_scale(self, progress: float) -> float:
        return self.config.scale * (1 - progress)


def test_a_setting_that_does_nothing_is_caught(lab: Lab) -> None:
    assert "no other value of strength" in failures(lab, DeadSetting, "settings")["settings"]


class SaidUnseen(DeadSetting):
    unseen: ClassVar[tuple[str, ...]] = ("strength",)


class SaidUnseenButSeen(DeadSetting):
    unseen: ClassVar[tuple[str, ...]] = ("strength", "scale")


def test_what_is_said_to_be_unseen_must_be(lab: Lab) -> None:
    assert failures(lab, SaidUnseen, "settings") == {}
    assert (
        "`unseen` names scale, but this run shows it"
        in failures(lab, SaidUnseenButSeen, "settings")["settings"]
    )


class SwappedVariables(DeadSetting):
    env: ClassVar[dict[str, str]] = {"SCALE": "strength", "STRENGTH": "scale"}


def test_a_variable_that_sets_another_setting_is_caught(lab: Lab) -> None:
    assert "the variable SCALE sets `strength`" in failures(lab, SwappedVariables, "settings")["settings"]


class NeverFull(Technique):
    """Its batch is still the small one where it says that the full one begins."""

    name = "planted_batch"

    def phases(self) -> tuple[float, ...]:
        return (0.5,)

    def batch(self, batch: Any, phase: float) -> Any:
        return batch._replace(tokens=batch.tokens // (1 if phase > 0.5 else 2))


def test_a_phase_that_begins_late_is_caught(lab: Lab) -> None:
    assert "changes from" in failures(lab, NeverFull, "phases")["phases"]


def test_scores_are_counted_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failures(lab, PlantedOrder, "counted") == {}
    plain = dataset.Dataset.target_bytes
    monkeypatch.setattr(dataset.Dataset, "target_bytes", lambda self, tokens: plain(self, tokens) + 1)
    assert "counted:" in failures(lab, PlantedOrder, "counted")["counted"]
