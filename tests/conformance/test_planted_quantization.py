"""The published defects of averaging and quantisation, planted: each is
caught by a check or told by the audit. Sound techniques of the shelf pass the same checks."""

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import train_gpt
from conformance import suite
from conformance.lab import SHORT, Finished, Lab, write_corpus
from techniques import _quant
from techniques._quant import PACKINGS
from techniques.averaging.ema import Ema
from techniques.averaging.swa import Swa
from techniques.base import Shape, Technique
from techniques.quantization.gptq import Gptq
from techniques.quantization.late_qat import LateQat
from techniques.quantization.mixed_bits import MixedBits
from techniques.quantization.prune import Prune
from techniques.quantization.sdclip import SdClip
from trainer.artifact import Packed

KNOWN = {t.name: t for t in (Ema, Swa, LateQat, Gptq, MixedBits, Prune, SdClip)}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    small = Lab(write_corpus(tmp_path_factory.mktemp("traps")))
    small.settings |= {"iterations": 6, "warmdown_iters": 3, "val_tokens": 64}
    yield small
    torch.set_num_threads(threads)


def failures(lab: Lab, cls: type[Technique], *only: str, **settings: Any) -> dict[str, str]:
    """check -> reason of what failed."""
    report = suite.run(cls, settings, lab=lab, only=only)
    return {o.check: o.reason for o in report.outcomes if o.status == "failed"}


def short_run(lab: Lab, **settings: Any) -> Finished:
    flat = {name.replace("__", "."): value for name, value in settings.items()}
    return lab.train(lab.resolve(flat, KNOWN, **SHORT))


# -- trap 1: a late-QAT switch that the compiler froze -----------------------------------------------------

SWITCH = {"on": False}


@torch.compiler.assume_constant_result
def switch_is_on() -> bool:
    return SWITCH["on"]


def rounded(w: torch.Tensor) -> torch.Tensor:
    return w + ((w * 64).round() / 64 - w).detach()


class FrozenRounding(nn.Module):
    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return rounded(w) if switch_is_on() else w


class FrozenQat(Technique):
    """Its switch is a constant of the first trace: eager it works, compiled it never comes on."""

    name = "planted_frozen_qat"

    def weight(self, shape: Shape, role: str, bits: int):
        return FrozenRounding()

    def stepper(self, model: Any):
        def step(progress: float, lr_scale: float) -> None:
            SWITCH["on"] = lr_scale < 0.9

        return step


def test_a_switch_that_the_compiler_froze_is_caught_though_the_eager_audit_sees_it_work(lab: Lab) -> None:
    found = failures(lab, FrozenQat, "compiled", "activity", "reach")
    assert found.keys() == {"compiled"} and "at step 3, the eager run's" in found["compiled"]


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_late_qat_is_compiled_once_with_its_switch_in_the_graph(lab: Lab, mode: str) -> None:
    assert failures(lab, LateQat, "compiled", "causality", "warm-up", "reach", mode=mode) == {}
    on = short_run(lab, late_qat=True, late_qat__threshold=0.9, late_qat__mode=mode).losses
    assert on[:2] == lab.golden[:2] and on[2] != lab.golden[2]  # the check saw it come on


# -- trap 2: a feature attached to a class that the model no longer uses -----------------------------------


class QatOnAnotherClass(Technique):
    """Looks for torch's own linear layers; this model has none."""

    name = "planted_other_class"

    def stepper(self, model: Any):
        parts = [m for m in model.modules() if isinstance(m, nn.Linear)]

        def step(progress: float, lr_scale: float) -> None:
            for part in parts:
                part.weight.data = rounded(part.weight.data)

        return step


class QatOnOneMatrix(Technique):
    """What parameter banks left of the published late QAT: one small projection."""

    name = "planted_one_matrix"

    def __init__(self, config: Any = None):
        super().__init__(config)
        self.given = 0

    def weight(self, shape: Shape, role: str, bits: int):
        self.given += 1
        return rounded if self.given % 12 == 1 else None  # 12 matrices a model


def test_a_feature_on_a_class_that_nobody_uses_is_inactive(lab: Lab) -> None:
    assert "never reached it" in failures(lab, QatOnAnotherClass, "activity")["activity"]


def test_a_feature_on_a_scrap_of_the_matrices_is_caught_by_its_share(lab: Lab) -> None:
    found = failures(lab, QatOnOneMatrix, "reach", "activity")
    assert found.keys() == {"reach"} and "1 of 12 matrices" in found["reach"]


# -- trap 3: averages that are collected and never used ----------------------------------------------------


class CollectedOnly(Technique):
    """Snapshots are summed, the last weights are exported."""

    name = "planted_swa"

    class Averager:
        facts: ClassVar[dict[str, Any]] = {}

        def __init__(self, model: Any):
            self.model, self.snapshots = model, []

        def update(self, model: Any, lr_scale: float = 1.0) -> None:
            self.snapshots.append([p.detach().clone() for p in model.parameters()])

        def weights(self) -> dict[str, torch.Tensor]:
            return {n: p.detach().float() for n, p in self.model.named_parameters()}

    def averager(self, model: Any, num_steps: int):
        return self.Averager(model)


def test_snapshots_that_never_reach_the_export_are_inactive(lab: Lab) -> None:
    assert "exported weights did not change" in failures(lab, CollectedOnly, "activity")["activity"]


def test_swa_is_exported_and_counts_its_snapshots(lab: Lab) -> None:
    assert failures(lab, Swa, "activity", every=1) == {}
    run = lab.train(lab.resolve({"swa": True, "swa.every": 1, "swa.start_scale": 0.9}, KNOWN))
    assert run.audit.facts["swa"]["snapshots"] == 2  # behind steps 5 and 6: their scales are 2/3 and 1/3


@pytest.mark.parametrize("combine", ["swa", "blend"])
def test_a_swa_that_never_starts_is_inactive_and_no_ema_under_its_name(lab: Lab, combine: str) -> None:
    found = failures(lab, Swa, "activity", combine=combine, start_scale=0.0)
    assert "exported weights did not change" in found["activity"]


def test_ema_and_swa_cannot_both_be_asked_for(lab: Lab) -> None:
    with pytest.raises(ValueError, match="ema and swa are both on"):
        lab.resolve({"ema": True, "swa": True}, KNOWN)


# -- trap 5: averages against quantisation-aware training, and horizons that are too long --------------------


def test_swa_beside_late_qat_is_refused(lab: Lab) -> None:
    with pytest.raises(ValueError, match="off the grid"):
        lab.resolve({"late_qat": True, "swa": True}, KNOWN)


def test_the_audit_tells_an_average_that_is_worse_than_the_last_weights(lab: Lab) -> None:
    saved: dict[float, float] = {}
    for share in (1e-4, 0.7):
        run = lab.train(lab.resolve({"ema": True, "ema.one_minus_decay": share}, KNOWN))
        facts = run.audit.facts["ema"]
        saved[share] = facts["train_loss_last"] - facts["train_loss_average"]
    assert saved[1e-4] < -0.5 < saved[0.7]


# -- trap 19: scales at the floor, and the plain error as GPTQ's judge -------------------------------------


def test_rows_at_the_scale_floor_and_the_hessians_error_are_told(lab: Lab) -> None:
    bits = {"mixed_bits": True, "gptq": True, "gptq.calib_batches": 4, "gptq.block_size": 16}
    told: dict[str, dict[str, Any]] = {}
    for floor in ("tiny", "published"):
        run = lab.train(lab.resolve(bits | {"gptq.scale_floor": floor}, KNOWN, **SHORT))
        lab.export(run)
        told[floor] = run.audit.facts["gptq"]
    assert told["tiny"]["rows_at_floor"] == 0 and told["published"]["rows_at_floor"] > 500
    assert told["tiny"]["solved"] == 12 and 0 < told["tiny"]["hessian_error_over_rounding"] < 1


# -- trap 20: a pruning that prunes nothing ----------------------------------------------------------------


class PublishedPrune(Technique):
    """The 2 % quantile of |q| is its threshold: zero, wherever 2 % are zero already."""

    name = "planted_prune"
    requires = ("mixed_bits",)
    smoke: ClassVar[dict[str, Any]] = {}

    def correct(self, packed: Any, export: Any):
        magnitudes = torch.cat([p.q.abs().flatten() for p in packed if p.scale is not None]).float()
        threshold = magnitudes.quantile(0.02)
        return [
            item if item.scale is None else Packed(item.name, item.q * (item.q.abs() > threshold), item.scale)
            for item in packed
        ]


def test_a_pruning_below_its_threshold_is_inactive(lab: Lab) -> None:
    report = suite.run(PublishedPrune, lab=lab, known=KNOWN, only=("activity",))
    assert any("stored tensors did not change" in reason for reason in report.failures)


def test_ours_zeroes_what_it_says(lab: Lab) -> None:
    assert failures(lab, Prune, "activity") == {}
    run = lab.train(lab.resolve({"prune": True, "prune.fraction": 0.05}, KNOWN, **SHORT))
    before = sum(int((p.q == 0).sum()) for p in lab.export(short_run(lab))[0] if p.scale is not None)
    after = sum(int((p.q == 0).sum()) for p in lab.export(run)[0] if p.scale is not None)
    assert after - before == run.audit.facts["prune"]["newly_zeroed"] > 500


# -- integers beyond their bits, and a codec that drops an odd byte -----------------------------------------


class Unclamped:
    """Rounds by the 0.99 quantile, and clamps to eight bits whatever was asked for."""

    facts: ClassVar[dict[str, Any]] = {}
    hessians: ClassVar[dict[str, Any]] = {}
    reads_data = False

    def calibrate(self, model: Any, batches: Any) -> None:
        pass

    def quantize(self, name: str, weight: torch.Tensor, bits: int, rule: Any) -> tuple[Any, Any]:
        scale = (weight.abs().quantile(0.99, dim=1) / (2 ** (bits - 1) - 1)).clamp_min(1e-7).half()
        return (weight / scale.float()[:, None]).round().clamp(-128, 127).to(torch.int8), scale


class PlantedUnclamped(Technique):
    name = "planted_unclamped"
    stage = "quantize"

    def quantizer(self) -> Any:
        return Unclamped()


class EvenCodec:
    """Pairs of bytes; an odd one at the end is lost."""

    name = "even"

    def compress(self, data: bytes) -> bytes:
        return data[: len(data) // 2 * 2]

    def decompress(self, data: bytes) -> bytes:
        return data


class PlantedEven(Technique):
    name = "planted_even"
    stage = "pack"

    def codec(self) -> Any:
        return EvenCodec()


def test_integers_beyond_their_bits_and_lost_odd_bytes_are_caught(lab: Lab) -> None:
    assert "beyond 15" in failures(lab, PlantedUnclamped, "integers")["integers"]
    assert failures(lab, PlantedEven, "container").keys() == {"container"}
    assert failures(lab, MixedBits, "integers") == {}


# -- a search for bytes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Prune, SdClip], ids=lambda cls: cls.name)
def test_what_aims_at_a_size_keeps_to_it(
    lab: Lab, cls: type[Technique], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole submission: what few packings found is what is packed in the end."""
    monkeypatch.setattr(train_gpt, "submitted_script", lambda _resolved: bytes(5000))
    monkeypatch.setattr(_quant, "CHEAP_BYTES", 0)  # as if this file were a large one
    target = 5000 + round(0.97 * len(lab.export(short_run(lab))[1]))
    run = short_run(lab, **{cls.name: True, f"{cls.name}__target_bytes": target})
    packed, _ = lab.export(run)
    told = run.seams.audit.report()[cls.name]
    assert told["verdict"] == "active" and told["fits"] and told["packings"] <= PACKINGS
    stored = train_gpt.pack(packed, run.resolved.head(), run.seams.codec())
    assert len(stored) + 5000 == told["bytes_after"] <= target
