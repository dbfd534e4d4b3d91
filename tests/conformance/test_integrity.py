"""Integrity: which detector fires on which planted scorer; the ledger of reads; the plausibility alarm; and
audit or check against each published trap of evaluation and export."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import train_gpt
from conformance import suite
from conformance.lab import Lab, smoke_settings, write_corpus
from conformance.scoring_checks import LENGTH, detect, score
from conformance.subject import Subject
from techniques import catalog
from techniques._lora import DocumentScorer, documents
from techniques.averaging.ema import Ema
from techniques.base import Legality, Technique, Verdict, setting
from techniques.evaluation.lora_ttt import LoraTtt
from techniques.evaluation.phased_ttt import PhasedScorer, PhasedTtt
from techniques.evaluation.pre_eval_ttt import PreEvalTtt
from techniques.evaluation.score_first_ttt import ScoreFirstTtt
from techniques.evaluation.slot import SlotTuning
from techniques.quantization.gptq_lite import GptqLite
from tests.conformance.test_planted_defects import SoundTtt, TrainsFirst
from tests.conftest import arguments
from trainer.audit import Audit, implausible
from trainer.ledger import Ledger


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Lab(write_corpus(tmp_path_factory.mktemp("integrity")))
    torch.set_num_threads(threads)


# -- detectors ---------------------------------------------------------------------------------------------


def chunks_of(run: Any) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    for start in range(0, run.num_positions, run.seq_len):
        yield start, *run.window(start, min(run.seq_len, run.num_positions - start))


class Rescored:
    """Scores a chunk, trains on it, scores it again, and hands in the second score."""

    facts: ClassVar[dict[str, Any]] = {}

    def score(self, run: Any) -> None:
        params = list(run.model.parameters())
        for start, ids, targets in chunks_of(run):
            grads = torch.autograd.grad(run.model(ids[None], targets[None]), params)
            with torch.no_grad():
                for p, g in zip(params, grads, strict=True):
                    p.sub_(g, alpha=0.02)
                run.write(start, run.nats(run.model.hidden(ids[None])[0], targets))


class HashedNgrams:
    """½p + ½·count(context, target)/count(context) out of small hashed tables, for the target alone: causal,
    and no distribution."""

    facts: ClassVar[dict[str, Any]] = {}

    def score(self, run: Any) -> None:
        pairs, contexts = np.zeros(3), np.zeros(2)
        tokens = run.tokens.tolist()
        with torch.no_grad():
            for start, ids, targets in chunks_of(run):
                p = (-run.nats(run.model.hidden(ids[None])[0], targets)).exp().tolist()
                for i, value in enumerate(p):
                    context, target = tokens[start + i], tokens[start + i + 1]
                    pair = (31 * context + target) % 3
                    mixed = 0.5 * value + 0.5 * pairs[pair] / max(1.0, contexts[context % 2])
                    run.write(start + i, -torch.tensor([mixed]).log())
                    pairs[pair] += 1
                    contexts[context % 2] += 1


class Twice:
    """Its last window scores some positions that have their score: the tail of #414 and its heirs."""

    facts: ClassVar[dict[str, Any]] = {}

    def score(self, run: Any) -> None:
        with torch.no_grad():
            for start, ids, targets in chunks_of(run):
                run.write(start, run.nats(run.model.hidden(ids[None])[0], targets))
            run.write(run.num_positions - 8, torch.ones(8))


class Dropped:
    """Leaves the batch that is not full out (#1855's diagnostic evaluation)."""

    facts: ClassVar[dict[str, Any]] = {}

    def score(self, run: Any) -> None:
        with torch.no_grad():
            for start, ids, targets in chunks_of(run):
                if ids.numel() == run.seq_len:
                    run.write(start, run.nats(run.model.hidden(ids[None])[0], targets))


class Planted(Technique):
    name = "planted_scorer"
    legality = Legality(Verdict.LEGAL, "test")
    kind: ClassVar[Any] = None

    def scorer(self) -> Any:
        return self.kind()


class PlantedRescoring(Planted):
    kind = Rescored


class PlantedNgrams(Planted):
    kind = HashedNgrams


class PlantedTwice(Planted):
    kind = Twice


class PlantedDropped(Planted):
    kind = Dropped


class AheadLora(LoraTtt):
    """Its adapters take their step on a chunk before the chunk has its scores."""

    class Scorer(DocumentScorer):
        def score_chunk(self, rows: Any, first: Any, optimizer: Any) -> None:
            write, self.run.write = self.run.write, lambda *_: None
            super().score_chunk(rows, first, optimizer)
            self.run.write = write
            super().score_chunk(rows, first, optimizer)

    def scorer(self) -> Any:
        config, kind = self.config, self.Scorer

        class Ahead:
            facts: ClassVar[dict[str, Any]] = {}

            def score(self, run: Any) -> None:
                for document in documents(run.tokens):
                    kind(run, config).score([document])

        return Ahead()


class AheadPhased(PhasedTtt):
    """A phase also trains on the document that is scored next."""

    def scorer(self) -> Any:
        class Ahead(PhasedScorer):
            def train_on(self, run: Any, found: Any) -> bool:
                return super().train_on(run, documents(run.tokens)[: len(found) + 1])

        return Ahead(self.config)


ALL = {"future", "target flip", "normalisation", "early"}


@pytest.mark.parametrize(
    ("cls", "changes", "fires"),
    [
        (SoundTtt, {}, set()),
        (SlotTuning, {}, set()),  # mask = context
        (SlotTuning, {"mask": "scored"}, ALL),
        (PreEvalTtt, {}, ALL),
        (PlantedRescoring, {}, ALL),
        (TrainsFirst, {}, ALL),
        (PlantedNgrams, {}, {"normalisation", "early"}),  # all tokens, with gradients on
        (AheadLora, {}, {"future", "normalisation", "early"}),  # no step behind a last chunk: no flip
        (AheadPhased, {}, {"future", "early"}),  # one document, far from the last target
    ],
)
def test_each_detector_fires_on_what_deserves_it(
    lab: Lab, cls: type[Technique], changes: dict[str, Any], fires: set[str]
) -> None:
    assert set(detect(Subject(lab, cls, known={}, changes=changes))) == fires


@pytest.mark.parametrize(
    ("cls", "off"),
    [
        (LoraTtt, {"lr": 0.0}),
        (PhasedTtt, {"lr": 0.0}),
        (PhasedTtt, {"global_lr": 0.0}),
        (ScoreFirstTtt, {"lr": 0.0}),
    ],
)
def test_the_detectors_tokens_are_enough_for_every_adaptation_to_happen(
    lab: Lab, cls: type[Technique], off: dict[str, Any]
) -> None:
    tokens = lab.ids(1, LENGTH + 1)[0]
    subjects = [Subject(lab, cls, known={}, changes=changes) for changes in ({}, off)]
    adapted, plain = (score(one, one.resolved, tokens).nll for one in subjects)
    moved = (adapted != plain).nonzero().flatten()
    assert int(moved[0]) < LENGTH // 2 and len(moved) > LENGTH // 8


@pytest.mark.parametrize(("cls", "told"), [(PlantedTwice, "scored twice"), (PlantedDropped, "never scored")])
def test_trap_10_double_and_dropped_scores_are_caught(lab: Lab, cls: type[Technique], told: str) -> None:
    report = suite.run(cls, lab=lab, only=("coverage",))
    assert told in "".join(report.failures)


def test_a_scorer_that_claims_to_isolate_documents_and_does_not_is_caught(lab: Lab) -> None:
    class Leaky(SoundTtt):
        isolates_documents = True  # pyright: ignore[reportAssignmentType]

    report = suite.run(Leaky, lab=lab, only=("isolated scores",))
    assert "changed and the score of token" in "".join(report.failures)


# -- the ledger --------------------------------------------------------------------------------------------


class Thief:
    folder: ClassVar[Path | None] = None  # of the shards; None: it steals nothing


class ReadsValidation(Technique):
    """Opens a validation shard by itself before a training step."""

    name = "planted_thief"

    def stepper(self, model: Any):
        def step(progress: float, scale: float) -> None:
            if Thief.folder is not None:
                np.fromfile(next(Thief.folder.glob("fineweb_val_0*")), dtype=np.uint16)

        return step


def test_a_technique_that_opens_validation_shards_while_training_is_caught(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Thief, "folder", lab.folder)
    report = suite.run(ReadsValidation, lab=lab, only=("reads",))
    (told,) = report.failures
    assert "train: steps read a validation shard that it may not read there" in told
    monkeypatch.setattr(Thief, "folder", None)
    assert suite.run(ReadsValidation, lab=lab, only=("reads",)).failures == []


def test_training_on_unscored_tokens_stands_on_the_ledger(lab: Lab) -> None:
    report = suite.run(PreEvalTtt, lab=lab, only=("reads",))
    assert report.failures == [] and "validation tokens before they were scored" in report.outcomes[0].reason
    assert "before they were scored" in "".join(
        suite.run(PlantedRescoring, lab=lab, only=("reads",)).failures
    )


def test_what_the_ledger_allows_and_what_not() -> None:
    ledger = Ledger()
    ledger.timing(1)
    for stage, reader, split in [
        ("data", "check", "val"),
        ("train", "steps", "train"),
        ("train", "report", "val"),
        ("quantize", "calibration", "train"),
        ("evaluate", "plain", "val"),
    ]:
        ledger.at(stage, reader)
        ledger.note(split, 10, 5)
    assert ledger.findings() == []
    for stage, reader, split, told in [
        ("train", "steps", "val", "validation"),
        ("quantize", "calibration", "val", "validation"),
        ("quantize", "rounding", "train", "training"),
        ("evaluate", "plain", "train", "training"),
    ]:
        one = Ledger()
        one.at(stage, reader)
        one.note(split, 0, 7)
        assert one.findings() == [f"{stage}: {reader} read 7 {told} tokens that it may not read there"]
        again = Ledger()
        again.restore(one.state())
        assert again.findings() == one.findings() and again.summary() == one.summary()


def test_every_read_is_timed_or_named_as_untimed() -> None:
    reads = [
        ("data", "check", "val", ""),
        ("train", "build", "train", ""),
        ("train", "warm-up", "train", ""),
        ("train", "steps", "train", "256 training tokens"),
        ("train", "report", "val", ""),
        ("train", "audit", "train", ""),
        ("quantize", "calibration", "train", "256 training tokens"),
        ("evaluate", "plain", "val", "256 validation tokens"),
        ("evaluate", "audit", "val", ""),
    ]
    for stage, reader, split, told in reads:
        for timed in (False, True):
            ledger = Ledger()
            ledger.at(stage, reader)
            ledger.timing(int(timed))
            ledger.note(split, 0, 256)
            expected = [f"{stage}: {reader} read {told} while no timed clock ran"]
            assert ledger.findings() == (expected if told and not timed else [])


def test_calibration_behind_the_budget_is_a_finding() -> None:
    for used, told in ((599.0, 0), (600.5, 1)):
        ledger = Ledger()
        with ledger.lap(SimpleNamespace(blocks=[torch.nn.Identity()])):
            ledger.calibrating(used)
            ledger.note("train", 0, 2048)
        assert len(ledger.findings(600.0)) == told and ledger.findings(0.0) == []
    assert "training budget of 600 s" in ledger.findings(600.0)[0]


def test_a_report_that_moves_a_weight_is_a_finding() -> None:
    model, ledger = torch.nn.Linear(3, 2), Ledger()
    ledger.at("train", "steps")
    with ledger.report(model):
        ledger.note("val", 0, 9)
    assert ledger.findings() == [] and ledger.reader == "steps"
    with ledger.report(model), torch.no_grad():
        model.weight[0, 0] += 1e-3
    assert ledger.findings() == ["train: weights moved while report read validation tokens"]


def test_a_run_tells_its_reads(tiny: dict[str, str], tmp_path: Path) -> None:
    extra = {"num_reports": "2", "warmup_steps": "1", "gptq": "1", "gptq.calib_batches": "2"}
    settings = tiny | extra | {"out_dir": str(tmp_path)}
    assert train_gpt.main(arguments(settings)) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    told = {(e["stage"], e["reader"], e["split"]): e for e in result["reads"]}
    assert told[("train", "steps", "train")]["reads"] == 6
    assert told[("train", "steps", "train")]["first"] == 0
    assert told[("quantize", "calibration", "train")]["first"] > told[("train", "steps", "train")]["end"] - 1
    assert told[("evaluate", "plain", "val")]["tokens"] == result["val_tokens"] + 1
    assert ("train", "report", "val") in told and result["findings"] == [] and result["record_legal"]
    assert train_gpt.main(arguments(settings)) == 0  # resumed: the ledger is whole all the same
    again = json.loads((tmp_path / "result.json").read_text())
    assert {(e["stage"], e["reader"], e["split"]) for e in again["reads"]} >= set(told)


# -- plausibility ------------------------------------------------------------------------------------------


def facts(train_nats: float, val_bpb: float, bytes_per_token: float = 2.4359) -> dict[str, Any]:
    tokens = 62_021_632
    return {
        "train_nats": train_nats,
        "val_bpb": val_bpb,
        "val_tokens": tokens,
        "val_bytes": round(tokens * bytes_per_token),
    }


def test_the_alarm_on_published_figures() -> None:
    """Training losses of about 1.92 nats are 1.137 bits per byte at 1024 tokens of vocabulary."""
    for legal in (1.1450, 1.1217, 1.1194, 1.09):
        assert implausible(facts(1.92, legal), 786_432) == []
    for odd in (0.9354, 0.299):  # #1263 (fits what it scores), #1091
        told = implausible(facts(1.92, odd), 786_432)
        assert len(told) == 1 and "plausibility" in told[0] and f"{odd:.4f}" in told[0]
    assert implausible(facts(1.92, 0.95), 256) == []  # one small batch says little about the loss
    assert implausible({"status": "failed"}, 256) == []


class Peek:
    """A tenth of the nats: it has the answers."""

    facts: ClassVar[dict[str, Any]] = {}

    def score(self, run: Any) -> None:
        with torch.no_grad():
            for start, ids, targets in chunks_of(run):
                run.write(start, 0.1 * run.nats(run.model.hidden(ids[None])[0], targets))


class PlantedPeek(Planted):
    kind = Peek


def test_a_planted_leak_sets_the_alarm_off(lab: Lab) -> None:
    for cls, alarms in ((PlantedPeek, 1), (SoundTtt, 0)):
        run = Subject(lab, cls, known={}).run()
        assert run.score is not None
        result = {"train_nats": run.trainer.train_loss - run.trainer.aux_loss}
        result |= {"val_bpb": run.score.val_bpb, "val_tokens": run.score.tokens, "val_bytes": run.score.bytes}
        assert len(implausible(result, 256)) == alarms


# -- traps 5, 19, 20, 21 (4: a double-zero bigram in test_planted_defects) ---------------------------------


def test_trap_5_an_average_with_too_long_a_horizon_is_a_finding_and_swa_beside_qat_an_error(lab: Lab) -> None:
    for one_minus_decay, told in ((1e-4, 1), (0.5, 0)):
        settings = smoke_settings(Ema, {"ema": Ema}, {"one_minus_decay": one_minus_decay})
        run = lab.train(lab.resolve(settings, {"ema": Ema}, iterations=40))
        audit = run.audit.facts["ema"]
        assert (audit["train_loss_average"] > audit["train_loss_last"] + 0.1) is bool(told)
        assert len(run.audit.findings()) == told
    shelf = catalog.metadata()
    with pytest.raises(ValueError, match="off the grid"):
        catalog.check_together({n: shelf[n]() for n in ("late_qat", "swa")})


def test_trap_19_rows_at_the_published_scale_floor_and_a_lost_output_error_are_findings(lab: Lab) -> None:
    known = {"gptq_lite": GptqLite}
    for floor, told in (("published", 1), ("tiny", 0)):
        resolved = lab.resolve(smoke_settings(GptqLite, known, {"scale_floor": floor}), known)
        run = lab.train(resolved)
        lab.export(run)
        found = run.audit.findings()
        assert len(found) == told and all("scale floor" in f for f in found)
    audit = Audit(["gptq"])
    audit.note("gptq", worst_hessian_error_over_rounding=0.9)
    assert audit.findings() == []
    audit.note("gptq", worst_hessian_error_over_rounding=1.2)
    assert "1.200 times that of plain rounding" in audit.findings()[0]


class PrunesNothing(Technique):
    """Zeroes what lies below the 2nd percentile of |q|, which is zero: `2 % pruning` of #569."""

    name = "planted_prune"
    stage = "quantize"

    def correct(self, packed: Any, export: Any) -> Any:
        for item in packed:
            if item.scale is not None:
                threshold = item.q.abs().float().flatten().quantile(0.02)
                item.q = torch.where(item.q.abs() < threshold, torch.zeros_like(item.q), item.q)
        return packed


def test_trap_20_pruning_that_prunes_nothing_is_inactive(lab: Lab) -> None:
    report = suite.run(PrunesNothing, lab=lab, only=("activity",))
    assert report.failures == ["activity: the activity audit says inactive: stored tensors did not change"]


class KeepsMomentum(Technique):
    """Has state of its own beside the optimisers, which the end of the warm-up does not put back (#1855)."""

    name = "planted_momentum"

    @dataclass(frozen=True)
    class Config:
        strength: float = setting(0.1, "share of the last weights that is kept", low=0.0, high=1.0)

    def stepper(self, model: Any):
        kept: list[torch.Tensor] = []

        def step(progress: float, scale: float) -> None:
            with torch.no_grad():
                if kept:
                    model.skip_weights.add_(kept[0], alpha=self.config.strength)
                kept[:] = [model.skip_weights.detach().clone()]

        return step


def test_trap_21_a_warm_up_that_leaves_a_trace_is_caught(lab: Lab) -> None:
    report = suite.run(KeepsMomentum, lab=lab, only=("warm-up",))
    assert "after two warm-up steps" in "".join(report.failures)
    assert suite.run(SoundTtt, lab=lab, only=("warm-up",)).failures == []
