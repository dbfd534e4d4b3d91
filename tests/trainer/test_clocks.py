"""What is timed: processor seconds on a CPU, whatever else the machine does, and every stage's work whole.

A delay on a CPU is a busy loop of processor time; sleep is none. Each place of EXPECTED waits once for `BUSY`
seconds where it stands, and its stage's timed seconds must hold all of them: BUSY is several times what the
stage takes by itself, so a place that no clock sees is missed.
"""

import copy
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import train_gpt
from conformance.lab import Lab, write_corpus
from techniques.base import SEAMS, Legality, Technique, Verdict, claims
from techniques.config import Config
from tests.conftest import arguments
from trainer import scoring
from trainer.artifact import RoundToNearest, ZlibCodec, round_to_nearest
from trainer.muon import Muon
from trainer.stream import TokenStream
from trainer.world import Clock, World

BUSY = 0.12  # s of a place
TRAIN = "loader,forward,phase,loss,stepper,lr_scale,hyper_at,orthogonalize,gradients,step,average,update"
EVALUATE = "decompress,build,forward,tokens,compile,scorer,begin,end,bytes"
EXPECTED = {
    *(("train", "steps", place) for place in TRAIN.split(",")),
    ("train", "audit", "averaged weights"),
    *(("quantize", "calibration", place) for place in ("calibrate", "bits", "round", "correct")),
    *(("evaluate", "slow", place) for place in EVALUATE.split(",")),
}


def busy(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


class Place:
    """Where delays are put, once each."""

    ledger: ClassVar[Any] = None
    spent: ClassVar[dict[tuple[str, str, str], float]] = {}
    seconds: ClassVar[float] = 0.0

    @classmethod
    def reached(cls, name: str) -> None:
        key = (cls.ledger.stage, cls.ledger.reader, name)
        if key in EXPECTED and key not in cls.spent:
            cls.spent[key] = cls.seconds
            busy(cls.seconds)


class SlowStream(TokenStream):
    def batch(self, parts: int, rows: int, seq_len: int) -> Any:
        Place.reached("loader")
        return super().batch(parts, rows, seq_len)


class SlowModule(torch.nn.Module):
    def enter_phase(self, progress: float) -> None:
        Place.reached("phase")

    def forward(self, x: Any, ids: Any) -> Any:
        Place.reached("forward")
        return x


class SlowMuon(Muon):
    def settle_gradients(self, *args: Any) -> None:
        Place.reached("gradients")
        super().settle_gradients(*args)

    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        Place.reached("step")
        super().step()


class SlowAverage:
    facts: ClassVar[dict[str, Any]] = {}

    def __init__(self, model: Any):
        Place.reached("average")
        self.model = model

    def update(self, model: Any, lr_scale: float) -> None:
        Place.reached("update")

    def weights(self) -> dict[str, Any]:
        Place.reached("averaged weights")
        return {n: p.detach().float() for n, p in self.model.named_parameters()}


class SlowQuantizer(RoundToNearest):
    """Takes a batch wherever it gets hold of one."""

    batches: ClassVar[Iterator[Any]] = iter(())

    def calibrate(self, model: Any, batches: Any) -> None:
        SlowQuantizer.batches = iter(batches)
        read("calibrate")

    def quantize(self, name: str, weight: Any, bits: int, rule: Any) -> Any:
        read("round")
        return round_to_nearest(weight, bits, rule)


def read(place: str) -> None:
    if place in Reads.places:
        next(SlowQuantizer.batches)
    Place.reached(place)


class Reads:
    places: ClassVar[tuple[str, ...]] = ("calibrate", "bits", "round", "correct")


class SlowCodec(ZlibCodec):
    name = "slow"

    def decompress(self, data: bytes) -> bytes:
        Place.reached("decompress")
        return super().decompress(data)


class SlowScorer(train_gpt.PlainScorer):
    def __init__(self) -> None:
        super().__init__()
        Place.reached("scorer")

    def score(self, run: Any) -> None:
        Place.reached("begin")
        super().score(run)
        Place.reached("end")


class Slow(Technique):
    """Stands at every seam that a stage's work runs through."""

    name = "slow"
    legality = Legality(Verdict.LEGAL, "test")

    def phases(self) -> tuple[float, ...]:
        return (0.5,)

    def loader(self, shards: Any, seed: int, seq_len: int) -> Any:
        return SlowStream(shards)

    def embed_in(self, shape: Any) -> Any:
        Place.reached("build")
        return SlowModule()

    def loss_terms(self, shape: Any) -> Any:
        return lambda loss, *_: (Place.reached("loss"), loss)[1]

    def stepper(self, model: Any) -> Any:
        return lambda *_: Place.reached("stepper")

    def lr_scale(self, progress: float) -> float:
        Place.reached("lr_scale")
        return 0.5

    def hyper_at(self, hyper: Any, progress: float) -> Any:
        Place.reached("hyper_at")
        return hyper

    def muon(self, *args: Any) -> Any:
        return SlowMuon(*args)

    def orthogonalize(self, inner: Any) -> Any:
        return lambda g, steps: (Place.reached("orthogonalize"), inner(g, steps))[1]

    def averager(self, model: Any, num_steps: int) -> Any:
        return SlowAverage(model)

    def quantizer(self) -> Any:
        return SlowQuantizer()

    def tensor_bits(self, bits: Any, export: Any) -> Any:
        read("bits")
        return bits

    def correct(self, packed: Any, export: Any) -> Any:
        read("correct")
        return packed

    def codec(self) -> Any:
        return SlowCodec()

    def scorer(self) -> Any:
        return SlowScorer()


class SlowData:
    """The dataset; opening the evaluation and counting its bytes take time."""

    def __init__(self, data: Any):
        self.data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def val_tokens(self, **limits: Any) -> Any:
        Place.reached("tokens")
        return self.data.val_tokens(**limits)

    def target_bytes(self, tokens: Any) -> Any:
        Place.reached("bytes")
        return self.data.target_bytes(tokens)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = Lab(write_corpus(tmp_path_factory.mktemp("clocks")))
    found.data = SlowData(found.data)
    Place.ledger = found.world.ledger
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "compiles", lambda *_: bool(Place.reached("compile")))
        yield found
    torch.set_num_threads(threads)


def missed(lab: Lab, seconds: float) -> dict[str, float]:
    """Stage -> processor seconds of its delays that its timed seconds do not hold; findings of the ledger."""
    Place.spent = {}
    Place.seconds = seconds
    short = {"iterations": 3, "warmdown_iters": 2, "warmup_steps": 0, "val_tokens": 64, "num_layers": 1}
    run = lab.train(lab.resolve({"slow": True}, {"slow": Slow}, **short))
    run.artifact = lab.export(run)[1]
    scored = train_gpt.evaluate(run.artifact, run.seams, lab.world, lab.data)
    ledger = lab.world.ledger
    train_s = run.trainer.clock.seconds
    eval_s = scored[2]["timed"]
    timed = {"train": train_s, "quantize": ledger.calibrated_s, "evaluate": eval_s}
    spent = {stage: sum(s for key, s in Place.spent.items() if key[0] == stage) for stage in timed}
    assert Place.spent.keys() == EXPECTED
    return {stage: spent[stage] - timed[stage] for stage in timed}


def only_of(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """The other stages' delays take time and show nothing."""
    kept = {key for key in EXPECTED if key[0] == stage}
    monkeypatch.setattr(sys.modules[__name__], "EXPECTED", kept)


def test_every_seam_has_its_place() -> None:
    """A seam that is not among Slow's runs in a stage by way of one that is."""
    within = {
        "forward": "embed_out shared values norm rope attend attn_out activation mlp residual block_out skip "
        "plan cap cross_entropy weight",
        "build": "sizes init hyper batch",  # with the model: untimed in training
        "round": "bits row_scale",
        "correct": "fit",
    }
    assert {*claims(Slow), *" ".join(within.values()).split()} == {*SEAMS}


def test_a_delay_at_any_place_of_any_stage_is_timed(lab: Lab) -> None:
    alone = missed(lab, 0.0)
    assert max(-s for s in alone.values()) < BUSY, f"raise BUSY: the stages themselves take {alone}"
    assert max(missed(lab, BUSY).values()) <= 0.0
    assert lab.world.ledger.findings() == []


def test_only_laps_that_read_data_are_paid_by_the_budget(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reads, "places", ("correct",))
    monkeypatch.setattr(sys.modules[__name__], "EXPECTED", {("quantize", "calibration", "correct")})
    assert missed(lab, BUSY)["quantize"] <= 0.0 and lab.world.ledger.calibrated_s < 2 * BUSY
    monkeypatch.setattr(Reads, "places", ())
    only_of(monkeypatch, "none")
    missed(lab, 0.0)
    assert lab.world.ledger.calibrated_s == 0.0


class Deferred(RoundToNearest):
    """Takes its batches at once, and works on them when it rounds."""

    def calibrate(self, model: Any, batches: Any) -> None:
        self.model = model
        self.kept = next(iter(batches))[0]

    def quantize(self, name: str, weight: Any, bits: int, rule: Any) -> Any:
        with torch.no_grad():
            self.model.hidden(self.kept)
        Place.reached("round")
        return round_to_nearest(weight, bits, rule)


class DeferredCopy(Deferred):
    """The same on a copy of the model."""

    def calibrate(self, model: Any, batches: Any) -> None:
        super().calibrate(copy.deepcopy(model), batches)


@pytest.mark.parametrize("kind", [Deferred, DeferredCopy])
def test_a_calibration_that_is_put_off_is_paid_too(
    kind: type[Deferred], lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slow, "quantizer", lambda self: kind())
    monkeypatch.setattr(Reads, "places", ())
    monkeypatch.setattr(sys.modules[__name__], "EXPECTED", {("quantize", "calibration", "round")})
    assert missed(lab, BUSY)["quantize"] <= 0.0


# -- planted defects ---------------------------------------------------------------------------------------


def test_an_evaluation_clock_that_starts_late_is_caught(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Clock):
        def start(self) -> None:
            if self.world.ledger.stage != "evaluate":
                super().start()

    def start_and_compile(run: Any, resolved: Any, scorer: str, clock: Clock) -> None:
        Clock.start(clock)
        scoring.compile_scoring(run, resolved, scorer, clock)

    monkeypatch.setattr(train_gpt, "Clock", Late)
    monkeypatch.setattr(train_gpt, "compile_scoring", start_and_compile)
    only_of(monkeypatch, "evaluate")
    assert missed(lab, BUSY)["evaluate"] > 2 * BUSY
    told = "evaluate: slow read 65 validation tokens while no timed clock ran"
    assert told in lab.world.ledger.findings()


def test_an_average_that_is_updated_outside_the_clock_is_caught(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = train_gpt.Trainer.watch

    def stopped(trainer: Any, loss: Any) -> None:
        trainer.clock.stop()
        Place.reached("late update")
        trainer.clock.start()
        step(trainer, loss)

    monkeypatch.setattr(train_gpt.Trainer, "watch", stopped)
    monkeypatch.setattr(sys.modules[__name__], "EXPECTED", {("train", "steps", "late update")})
    assert missed(lab, BUSY)["train"] > 0.0


def test_a_read_while_the_training_clock_stands_is_caught(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    step = train_gpt.Trainer.train_step

    def stopped(trainer: Any, moment: Any) -> Any:
        trainer.clock.stop()
        found = step(trainer, moment)
        trainer.clock.start()
        return found

    monkeypatch.setattr(train_gpt.Trainer, "train_step", stopped)
    only_of(monkeypatch, "none")
    missed(lab, 0.0)
    (told,) = lab.world.ledger.findings()
    assert told.startswith("train: steps read") and told.endswith("while no timed clock ran")


# -- the clock itself --------------------------------------------------------------------------------------


def spent_by(world: World, work: Any) -> float:
    before = world.seconds()
    work()
    return world.seconds() - before


def test_processor_seconds_are_those_of_this_process_and_its_children() -> None:
    world = World(Config(device="cpu", num_threads=1))
    world._threads = 1
    assert spent_by(world, lambda: time.sleep(0.3)) < 0.1
    assert 0.2 <= spent_by(world, lambda: busy(0.2)) < 0.4

    def in_thread() -> None:
        thread = threading.Thread(target=busy, args=(0.2,))
        thread.start()
        thread.join()

    assert 0.2 <= spent_by(world, in_thread) < 0.4
    code = "import time\nwhile time.process_time() < 0.3: pass"
    assert spent_by(world, lambda: subprocess.run([sys.executable, "-S", "-c", code], check=True)) >= 0.3
    world._threads = 2  # a team's work counts by the thread, the main one's whole
    assert 0.1 <= spent_by(world, in_thread) < 0.2
    assert 0.2 <= spent_by(world, lambda: busy(0.2)) < 0.4
    readings = [world.seconds() for _ in range(1000)]
    assert all(a <= b for a, b in itertools.pairwise(readings))


def test_the_machines_load_is_not_timed(tiny: dict[str, str], tmp_path: Path) -> None:
    """Two busy processes on the run's own core: three times the seconds on the clock, and the same timed."""
    before = os.sched_getaffinity(0)
    threads = torch.get_num_threads()
    core = min(before)
    code = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    settings = tiny | {"iterations": "60", "out_dir": str(tmp_path), "train_log_every": "0"}
    burners = [subprocess.Popen([sys.executable, "-S", "-c", code]) for _ in range(2)]
    try:
        os.sched_setaffinity(0, {core})
        began_s = time.perf_counter()
        used_s = time.process_time()
        assert train_gpt.main(arguments(settings)) == 0
        used_s = time.process_time() - used_s
        waited_s = time.perf_counter() - began_s
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)
        for burner in burners:
            burner.kill()
            burner.wait()
    result = json.loads((tmp_path / "result.json").read_text())
    stages = result["stage_seconds"]
    assert waited_s > 1.5 * used_s
    assert result["train_seconds"] + result["eval_seconds"] <= used_s
    assert stages["train"]["true"] > 1.5 * stages["train"]["timed"] > 0.0
    assert result["train_seconds"] == stages["train"]["timed"] + stages["quantize"]["timed"]
    try:
        assert (
            train_gpt.main(arguments(settings)) == 0
        )  # resumed: nothing is trained or scored, and nothing changes
    finally:
        torch.set_num_threads(threads)
    again = json.loads((tmp_path / "result.json").read_text())
    assert again["reused"] == ["train", "quantize", "pack", "evaluate"]
    assert {s: again["stage_seconds"][s] for s in ("train", "quantize", "evaluate")} == {
        s: stages[s] for s in ("train", "quantize", "evaluate")
    }
    assert all(again[name] == result[name] for name in ("train_seconds", "eval_seconds"))
