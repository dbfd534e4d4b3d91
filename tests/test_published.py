"""Published run commands: their variables reach what they mean; one that means nothing here is an error."""

import pytest

from techniques import catalog
from techniques.base import Technique
from techniques.config import Resolved
from techniques.published import ALIASES, DETAILS, GATES, MODES, PUBLISHED, answered_names, environment_names
from techniques.settings import settings_from

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


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("GATED_ATTENTION", "1", {"attention_gate.mode": "bias"}),
        ("SPARSE_ATTN_GATE_ENABLED", "1", {"attention_gate.mode": "sparse"}),
        ("VALUE_RESIDUAL", "1", {"value_residual.mode": "lambda"}),
        ("VRL", "true", {"value_residual.mode": "add"}),
        ("SMEAR_GATE_ENABLED", "1", {"smear_gate.mode": "input_gate"}),
        ("QAT_ENABLED", "1", {"late_qat.threshold": 2.0}),
        ("COMPRESSOR", "lzma", {"lzma_xz": True, "zstd": False}),
        ("COMPRESSOR", "zlib", {"lzma_xz": False, "zstd": False}),
        ("CASEOPS_ENABLED", "1", {"caseops": True}),
    ],
)
def test_a_variable_that_chooses_a_variant(variable: str, value: str, expected: dict[str, object]) -> None:
    run = settings("", {variable: value})
    assert {k: run.values[k] for k in expected} == expected
    assert settings("", {variable: "0"}).techniques == {}


def test_a_mode_replaces_the_presets() -> None:
    assert settings("pr549", {"COMPRESSOR": "zstd"}).values["lzma_xz"] is False
    run = settings("naive", {"SLOT_ENABLED": "1", "SLOT_MASK": "context"})
    assert run.values["slot.mask"] == "context"
    with pytest.raises(ValueError, match=r"`COMPRESSOR` chooses one of 'zlib', .*'brotli'.*, but got 'gzip'"):
        settings("", {"COMPRESSOR": "gzip"})
    with pytest.raises(ValueError, match="chooses one of"):
        settings("naive", {"SLOT_ENABLED": "1", "SLOT_MASK": "future"})


def test_a_detail_reaches_what_is_on_and_means_nothing_beside_what_is_off() -> None:
    on = {"SPARSE_ATTN_GATE_ENABLED": "1", "GATE_WINDOW": "16", "SPARSE_ATTN_GATE_SCALE": "0.25"}
    run = settings("", on)
    assert (run.values["attention_gate.window"], run.values["attention_gate.kappa"]) == (16, 0.25)
    assert settings("", {"GATE_WINDOW": "16", "MATRIX_BITS": "6"}).techniques == {}
    run = settings("pr549", {"MATRIX_BITS": "5", "EMBED_BITS": "7"})
    assert [run.values[f"mixed_bits.{r}_bits"] for r in ("attn", "mlp", "embed")] == [5, 5, 7]


def test_every_mode_and_detail_names_what_exists() -> None:
    later = {"per_group"}  # another codec's folder of the catalogue
    for options in MODES.values():
        for chosen_settings in options.values():
            for name, value in chosen_settings.items():
                owner, _, field = name.partition(".")
                if owner in later - set(KNOWN):
                    continue
                known = KNOWN[owner].Config.__dataclass_fields__
                assert not field or (field in known and value != known[field].name), name
    for names in DETAILS.values():
        for name in names:
            owner, _, field = name.partition(".")
            assert field in KNOWN[owner].Config.__dataclass_fields__, name
