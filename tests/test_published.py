"""Published run commands: their variables reach what they mean; one that means nothing here is an error."""

import pytest

from techniques import catalog
from techniques.base import Technique
from techniques.config import Resolved, answered_names, environment_names, settings_from
from techniques.published import ALIASES, GATES, PUBLISHED

KNOWN = catalog.metadata()

# The commands of the records' READMEs, less torchrun; each runs beside its preset.
PR549 = """
NUM_LAYERS=11 BIGRAM_VOCAB_SIZE=1536 XSA_LAST_N=4 EMA_ENABLED=1 EMA_DECAY=0.997 SWA_ENABLED=1 SWA_EVERY=50
ROPE_DIMS=16 LN_SCALE=1 LATE_QAT=1 LATE_QAT_THRESHOLD=0.15 VE_ENABLED=1 VE_DIM=128 VE_LAYERS=9,10
TTT_ENABLED=1 TTT_LR=0.002 TTT_EPOCHS=3 TTT_CHUNK_TOKENS=32768 TTT_FREEZE_BLOCKS=0 TTT_MOMENTUM=0.9
TTT_BATCH_SEQS=32 TTT_GRAD_CLIP=1.0 MUON_WD=0.04 ADAM_WD=0.04 MATRIX_LR=0.025 SCALAR_LR=0.025
TIED_EMBED_LR=0.035 MUON_MOMENTUM=0.99 MUON_MOMENTUM_WARMUP_START=0.92 MUON_MOMENTUM_WARMUP_STEPS=1500
WARMDOWN_ITERS=3500 ITERATIONS=9000 MAX_WALLCLOCK_SECONDS=600 EVAL_STRIDE=64 SEED=1337
"""
PR1263 = """
SEED=1337 SLOT_ENABLED=1 SLOT_STEPS=16 SLOT_LR=0.008 SLOT_LR_MIN=0.0008 QK_GAIN_INIT=4.0 XSA_LAST_N=11
EMA_ENABLED=1 EMA_DECAY=0.997 SWA_ENABLED=1 SWA_EVERY=50 LATE_QAT_THRESHOLD=0.15 GPTQ_ENABLED=1
GPTQ_CALIB_BATCHES=32 EVAL_STRIDE=64
"""


def variables(command: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in command.split())


def settings(preset: str, environ: dict[str, str], **known: type[Technique]) -> Resolved:
    argv = [f"--preset={preset}"] if preset else []
    return settings_from(argv, environ, known or KNOWN, has_gpu=True)


@pytest.mark.parametrize(
    ("preset", "command"), [("pr549", PR549), ("pr1263", PR1263), ("pr518", "TTT_EPOCHS=50 SEED=1337")]
)
def test_a_records_command_says_what_its_preset_says(preset: str, command: str) -> None:
    by_preset, by_command = settings(preset, {}), settings(preset, variables(command))
    odd = {k for k in by_preset.values if by_preset.values[k] != by_command.values[k]}
    assert odd <= {"value_embedding.layers"}, odd
    shape = by_preset.config.shape()
    costs = [{n: t.cost(shape).params for n, t in r.techniques.items()} for r in (by_preset, by_command)]
    assert costs[0] == costs[1]


def test_a_variable_of_a_scorer_goes_to_the_one_that_the_preset_turned_on() -> None:
    run = settings("pr549", {"EVAL_STRIDE": "32", "TTT_EPOCHS": "5"})
    assert run.values["score_first_ttt.stride"] == 32 and run.values["score_first_ttt.epochs"] == 5
    run = settings("pr549", {"EVAL_STRIDE": "32", "TTT_ENABLED": "0"})
    assert run.values["sliding_window.stride"] == 32 and not run.values["score_first_ttt"]
    assert settings("pr1263", {"EVAL_STRIDE": "128"}).values["slot.stride"] == 128
    assert settings("pr549", {"EMA_ENABLED": "0"}).values["ema"] is False
    assert settings("pr549", {"GPTQ_RESERVE_SECONDS": "9"}).config.reserve_seconds == 9.0


def test_a_published_variable_that_means_nothing_here_is_an_error() -> None:
    lost = sorted(PUBLISHED - answered_names(KNOWN))
    assert lost, "the test needs one that nothing answers to"
    for name in lost:
        with pytest.raises(ValueError, match=f"answers to: {name}=2"):
            settings("", {name: "2"})
        assert settings("", {name: "0"}).techniques == {}  # off is what it is here
    assert {*GATES.values()} <= set(KNOWN) and {*ALIASES} <= answered_names(KNOWN)
    assert PUBLISHED <= environment_names(KNOWN)


def test_inert_variables_are_inert_beside_their_preset_only() -> None:
    assert settings("pr549", {"LATE_QAT": "1"}).values == settings("pr549", {}).values
    alone = "is off|answers to|cannot both|Only one"
    if "LATE_QAT" not in answered_names(KNOWN):
        with pytest.raises(ValueError, match=alone):
            settings("naive", {"LATE_QAT": "1"})


def test_layers_by_number() -> None:
    environ = {"NUM_LAYERS": "4", "VE_ENABLED": "1", "VE_LAYERS": "1,3"}
    run = settings("", environ)
    assert run.techniques["value_embedding"].cost(run.config.shape()).tensors[2:] != ()
    with pytest.raises(ValueError, match="names different layers"):
        settings("", {**environ, "VE_LAYERS": "1,4"})
    with pytest.raises(ValueError, match="names different layers"):
        settings("", {**environ, "VE_LAYERS": "last"})
