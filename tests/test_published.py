"""Published run commands: their variables reach what they mean; one that means nothing here is an error."""

import pytest

from techniques import catalog
from techniques.base import Technique
from techniques.config import Resolved
from techniques.published import ALIASES, DETAILS, GATES, MODES, answered_names
from techniques.settings import settings_from
from techniques.unanswered import (
    ELSEWHERE,
    FIXED,
    INERT,
    NAMES,
    REFUSALS,
    REFUSED,
    SHELL,
    environment_names,
    looks_published,
)

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


NAIVE = """
NCCL_IB_DISABLE=1 RUN_ID=hf_verify_sp1024_8gpu DATA_PATH=/data/datasets/fineweb10B_sp1024
TOKENIZER_PATH=/data/tokenizers/fineweb_1024_bpe.model VOCAB_SIZE=1024 MAX_WALLCLOCK_SECONDS=600
TRAIN_LOG_EVERY=50 VAL_LOSS_EVERY=200
"""
PR1019 = "BIGRAM_VOCAB_SIZE=3072 BIGRAM_DIM=112 WARMDOWN_ITERS=4000 TARGET_MB=15.9 SEED=314"
PR1855 = """
DATA_DIR=./data VOCAB_SIZE=8192 DATA_PATH=./data/datasets/fineweb10B_sp8192_lossless_caps_caseops_v1_reserved
TOKENIZER_PATH=./data/tokenizers/fineweb_8192_bpe_lossless_caps_caseops_v1_reserved.model
CASEOPS_ENABLED=1 ITERATIONS=20000 MAX_WALLCLOCK_SECONDS=600
PHASED_TTT_ENABLED=1 PHASED_TTT_PREFIX_DOCS=2500 PHASED_TTT_NUM_PHASES=3
EMBED_BITS=7 MATRIX_LR=0.026 MIN_LR=0.1 MLP_CLIP_SIGMAS=11.5 ATTN_CLIP_SIGMAS=13.0 EMBED_CLIP_SIGMAS=14.0
GRAD_CLIP_NORM=0.3 TTT_CHUNK_SIZE=48 WARMUP_STEPS=20 MUON_BACKEND_STEPS=5 GLOBAL_TTT_MOMENTUM=0.9
WARMDOWN_FRAC=0.85 BETA2=0.99 TTT_BETA2=0.99 TTT_WEIGHT_DECAY=0.5 TTT_LORA_RANK=80 SPARSE_ATTN_GATE_SCALE=0.5
GPTQ_RESERVE_SECONDS=0.5 GPTQ_CALIBRATION_BATCHES=16 VAL_LOSS_EVERY=0
GATED_ATTN_QUANT_GATE=1 SPARSE_ATTN_GATE_ENABLED=1 GATE_WINDOW=12 SMEAR_GATE_ENABLED=1
LQER_ENABLED=1 LQER_ASYM_ENABLED=1 LQER_RANK=4 LQER_FACTOR_BITS=4 LQER_ASYM_GROUP=64 LQER_TOP_K=3
FUSED_CE_ENABLED=1 COMPRESSOR=pergroup NCCL_NET=Socket SEED=42
"""
PR1493 = "SEED=42 QK_GAIN_INIT=5.25 TTT_ENABLED=1 TTT_LR=0.005 TTT_EPOCHS=3"
DATA = """
DATA_PATH=./data/datasets/fineweb10B_sp8192_lossless_caps_caseops_v1_reserved
TOKENIZER_PATH=./data/tokenizers/fineweb_8192_bpe_lossless_caps_caseops_v1_reserved.model
"""
PR2118 = f"""
SEED=42 NGRAM_HINT_PRECOMPUTE_OUTSIDE=0 {DATA} CASEOPS_ENABLED=1 VOCAB_SIZE=8192 ITERATIONS=20000
MAX_WALLCLOCK_SECONDS=600 TTT_ENABLED=1 PHASED_TTT_ENABLED=1 PHASED_TTT_NUM_PHASES=1
PHASED_TTT_PREFIX_DOCS=1000 TTT_LORA_RANK=80 TTT_MASK=no_qv TTT_Q_LORA=0 TTT_V_LORA=0 TTT_LOCAL_LR_MULT=0.75
EVAL_SEQ_LEN=2560 TTT_EVAL_SEQ_LEN=2560 QK_GAIN_INIT=5.25 MATRIX_LR=0.026 MIN_LR=0.1 EMBED_BITS=7
GRAD_CLIP_NORM=0.3 MATRIX_CLIP_SIGMAS=12.85 ATTN_CLIP_SIGMAS=13.0 MLP_CLIP_SIGMAS=11.5
EMBED_CLIP_SIGMAS=14.0 FUSED_CE_ENABLED=1 SMEAR_GATE_ENABLED=1 GATE_WINDOW=12 SPARSE_ATTN_GATE_ENABLED=1
LQER_ENABLED=1 LQER_RANK=4 LQER_TOP_K=1 LQER_GROUP_SIZE=64 LQER_ASYM_ENABLED=1 LQER_ASYM_GROUP=64
AWQ_LITE_ENABLED=1 ASYM_LOGIT_RESCALE=1 NGRAM_TILT_ENABLED=1 GATED_XSA=1 SKYLIGHT_MUON=0
GPTQ_RESERVE_SECONDS=2.0 GPTQ_CALIBRATION_BATCHES=16 COMPRESSOR=pergroup NCCL_NET=Socket
GLOBAL_TTT_MOMENTUM=0.9
"""
PR2130 = """
PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True ASYM_LOGIT_RESCALE=1 NGRAM_TILT_ENABLED=1
NGRAM_HINT_PRECOMPUTE_OUTSIDE=0 TOKEN_ORDER=16 TOKEN_THRESHOLD=0.800 TOKEN_BOOST=2.625 WITHIN_TAU=99.0
WITHIN_BOOST=0.0 WORD_TAU=99.0 WORD_BOOST=0.0 AGREE_ADD_BOOST=0.0 DATA_DIR=./data CASEOPS_ENABLED=1
SMEAR_GATE_BOS_FIX=0 TTT_LORA_EMA_DECAY=0.0 TTT_UPDATE_EVERY=1 PHASED_TTT_PREFIX_DOCS=2500
PHASED_TTT_NUM_PHASES=1 EVAL_SEQ_LEN=2560 TTT_EVAL_SEQ_LEN=2560 COMPRESSOR=pergroup MATRIX_CLIP_SIGMAS=12.85
ATTN_CLIP_SIGMAS=13.0 MLP_CLIP_SIGMAS=11.5 EMBED_BITS=7 EMBED_CLIP_SIGMAS=14.0 MATRIX_LR=0.028 MIN_LR=0.1
WARMDOWN_FRAC=0.85 BETA2=0.99 FUSED_CE_ENABLED=1 SPARSE_ATTN_GATE_ENABLED=1 SPARSE_ATTN_GATE_SCALE=0.5
SMEAR_GATE_ENABLED=1 GATE_WINDOW=12 LQER_ENABLED=1 LQER_RANK=4 LQER_TOP_K=3 LQER_FACTOR_BITS=4
LQER_ASYM_ENABLED=1 LQER_ASYM_GROUP=32 TTT_WARM_START_A=1 TTT_LORA_RANK=80 TTT_BETA2=0.99
TTT_WEIGHT_DECAY=2.0 TTT_LORA_LR=8e-5 GPTQ_RESERVE_SECONDS=0.5 GPTQ_CALIBRATION_BATCHES=16 TTT_K_LORA=0
TTT_O_LORA=1 TTT_MLP_LORA=1 EMA_DECAY=0.9965 SEED=314
"""
PR2140 = f"""
CASEOPS_ENABLED=1 VOCAB_SIZE=8192 TRAIN_SEQ_LEN=3072 ROPE_TRAIN_SEQ_LEN=3072
TRAIN_SEQ_SCHEDULE=1024@0.100,2048@0.700,3072@1.000 TRAIN_SEQ_SCHEDULE_MODE=wallclock
SEQ_CHANGE_WARMUP_STEPS=32 COMPILE_SHAPE_WARMUP=1 EVAL_SEQ_LEN=3072 EVAL_STRIDE=1536 LEAKY_RELU_SQ_SLOPE=0.3
TTT_ENABLED=1 TTT_EVAL_SEQ_LEN=3072 TTT_BATCH_SIZE=24 TTT_CHUNK_SIZE=64 TTT_SHORT_SCORE_FIRST_ENABLED=1
TTT_SHORT_DOC_LEN=2000 TTT_SHORT_CHUNK_SIZE=32 TTT_SHORT_SCORE_FIRST_STEPS=256:16,2000:32 TTT_LORA_RANK=80
TTT_LORA_LR=0.0001 TTT_LOCAL_LR_MULT=0.75 TTT_MASK=no_qv TTT_Q_LORA=0 TTT_V_LORA=0 TTT_WEIGHT_DECAY=0.5
TTT_BETA2=0.99 PHASED_TTT_PREFIX_DOCS=2500 PHASED_TTT_NUM_PHASES=1 NGRAM_TILT_ENABLED=1
NGRAM_HINT_PRECOMPUTE_OUTSIDE=0 TOKEN_ORDER=16 TOKEN_THRESHOLD=0.800 TOKEN_BOOST=2.625 WITHIN_TAU=0.450
WITHIN_BOOST=0.0 WORD_ORDER=4 WORD_NORMALIZE=strip_punct_lower WORD_TAU=0.650 WORD_BOOST=0.0
AGREE_ADD_BOOST=0.0 WARMDOWN_FRAC=0.85 BETA2=0.99 QK_GAIN_INIT=5.25 SPARSE_ATTN_GATE_ENABLED=1
SPARSE_ATTN_GATE_SCALE=0.5 GATED_ATTN_QUANT_GATE=1 SMEAR_GATE_ENABLED=1 GATE_WINDOW=12 FUSED_CE_ENABLED=1
MATRIX_LR=0.026 MIN_LR=0.1 GRAD_CLIP_NORM=0.3 EMBED_BITS=7 EMBED_CLIP_SIGMAS=14.0 MATRIX_CLIP_SIGMAS=12.85
ATTN_CLIP_SIGMAS=13.0 MLP_CLIP_SIGMAS=11.5 LQER_ENABLED=1 LQER_RANK=4 LQER_TOP_K=3 LQER_FACTOR_BITS=4
LQER_ASYM_ENABLED=1 LQER_ASYM_GROUP=64 AWQ_LITE_ENABLED=1 AWQ_LITE_BITS=8 AWQ_LITE_GROUP_TOP_K=1
AWQ_LITE_GROUP_SIZE=64 ASYM_LOGIT_RESCALE=1 COMPRESSOR=pergroup GPTQ_RESERVE_SECONDS=4.0
GPTQ_CALIBRATION_BATCHES=16 VAL_LOSS_EVERY=0 SEED=42 {DATA}
"""
# preset -> its record's command, as its README prints it. Of #569 none was found.
COMMANDS = {
    "naive": NAIVE,
    "pr414": "SEED=1337",  # by way of a shell script
    "pr518": "TTT_EPOCHS=50 SEED=1337",
    "pr549": PR549,
    "pr1019": PR1019,
    "pr1263": PR1263,
    "pr1493": PR1493,
    "pr1855": PR1855,
    "pr2118": PR2118,
    "pr2130": PR2130,
    "pr2140": PR2140,
}
# What a command may say otherwise than its preset: paths, seed, the run's name, what is told while it trains.
APART = {"data_path", "tokenizer_path", "seed", "run_id", "val_loss_every", "train_log_every"}
# The same layers by number; the published reserve is too short for the calibration.
SAID_OTHERWISE = {"pr549": {"value_embedding.layers"}}
SAID_OTHERWISE |= {preset: {"reserve_seconds"} for preset in ("pr1855", "pr2118", "pr2130", "pr2140")}


def variables(command: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in command.split())


def settings(preset: str, environ: dict[str, str], **known: type[Technique]) -> Resolved:
    argv = [f"--preset={preset}"] if preset else []
    return settings_from(argv, environ, known or KNOWN, has_gpu=True)


@pytest.mark.parametrize("preset", COMMANDS)
def test_a_records_command_says_what_its_preset_says(preset: str) -> None:
    by_preset, by_command = settings(preset, {}), settings(preset, variables(COMMANDS[preset]))
    assert by_preset.values.keys() == by_command.values.keys()
    odd = {k for k in by_preset.values if by_preset.values[k] != by_command.values[k]}
    assert odd <= APART | SAID_OTHERWISE.get(preset, set()), odd
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


@pytest.mark.parametrize("name", sorted(REFUSALS))
def test_a_published_variable_that_means_nothing_here_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(ValueError) as caught:
        settings("", {name: "2"})
    assert f"answers to: {name}=2 ({REFUSALS[name]})" in str(caught.value)
    assert settings("", {name: "0"}).techniques == {}  # off is what it is here


@pytest.mark.parametrize("name", sorted(FIXED))
def test_a_value_that_says_what_is_so_here_is_taken_and_another_refused(name: str) -> None:
    values, reason = FIXED[name]
    for value in values.split():
        assert settings("", {name: value.upper()}).techniques == {}
    with pytest.raises(ValueError, match="answers to") as caught:
        settings("", {name: "7.5"})
    assert reason in str(caught.value)


def test_what_is_inert_says_nothing_and_each_name_stands_in_one_list() -> None:
    inert = {n: "7" for _, names in INERT for n in names.split()}
    assert settings("naive", inert).values == settings("naive", {}).values
    every = [*FIXED, *inert, *REFUSALS]
    assert len(every) == len(set(every)) and sum(len(names.split()) for _, names in REFUSED) == len(REFUSALS)
    assert not set(every) & (answered_names(KNOWN) | ELSEWHERE)
    assert {*GATES.values()} <= set(KNOWN) and {*ALIASES} <= answered_names(KNOWN)
    assert NAMES - {*inert} <= environment_names(KNOWN) and not {*inert} & environment_names(KNOWN)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("EMA_DECY", "EMA_DECAY"),
        ("NUM_LAYER", "NUM_LAYERS"),
        ("TTT_EPOCH", "TTT_EPOCHS"),
        ("LQER_X", "LQER_"),
    ],
)
def test_an_unknown_variable_that_looks_like_the_challenges_is_an_error(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}=1 \(in no list; did you mean {near}"):
        settings("naive", {name: "1"})
    assert name in environment_names(KNOWN, [name])  # a worker takes it away before a trial


def test_what_belongs_to_the_shell_is_left_alone() -> None:
    shell = """PATH HOME LOG_LEVEL MODEL_PATH BATCH_SIZE LS_COLORS NUM_WORKERS CI GITHUB_ACTIONS
    OMP_NUM_THREADS CUDA_VISIBLE_DEVICES TORCH_LOGS NCCL_DEBUG PYTHONPATH TERM_PROGRAM HF_LORA_X"""
    environ: dict[str, str] = {name: "1" for name in shell.split()}
    assert settings("naive", environ).values == settings("naive", {}).values
    assert not environment_names(KNOWN, environ) & {*environ}
    assert not any(looks_published(f"{word}_TTT_LR", ()) for word in SHELL)


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
        ("GATED_XSA", "1", {"xsa.mode": "gate"}),
        ("GATED_XSA_RESIDUAL", "1", {"xsa.mode": "residual"}),
        ("FP16_EMBED_EXPORT", "1", {"mixed_bits.embed_bits": 16, "mixed_bits.mlp_bits": 8}),
        ("NGRAM_TILT_ENABLED", "1", {"token_tilt": True, "phased_ttt": False}),
        ("GRAD_CENTRALIZE", "1", {"grad_centralize": True}),
        ("LABEL_SMOOTH", "0.1", {"label_smoothing.share": 0.1}),
        ("GATE_MLP_OUT", "1", {"mlp_gate": True}),
        ("ETLB_ENABLED", "1", {"etlb": True}),
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


def test_an_mlp_of_any_width_and_words_of_details() -> None:
    heads = {"NUM_HEADS": "6", "NUM_KV_HEADS": "6"}
    for dim, hidden in ((516, 1344), (516, 992), (480, 1001), (84, 25)):
        run = settings("", {**heads, "MODEL_DIM": str(dim), "MLP_HIDDEN": str(hidden)})
        assert run.config.shape().mlp_dim == hidden
    assert settings("laptop", {"MLP_HIDDEN": "100"}).config.shape().mlp_dim == 100
    run = settings(
        "", {"INT4_LAYERS": "3", "INT4_STEP": "4", "GATED_ATTENTION": "1", "GATE_ATTN_SRC": "proj"}
    )
    assert run.values["layer_bits.bits"] == 6 and run.values["attention_gate.source"] == "input"
    run = settings("", {"ATTN_OUT_GATE_ENABLED": "1", "ATTN_OUT_GATE_SRC": "q"})
    assert run.values["attention_gate.source"] == "q"
    run = settings("", {"NGRAM_TILT_ENABLED": "1", "PHASED_TTT_ENABLED": "1", "TTT_MASK": "no_qv"})
    assert run.values["phased_ttt.tilt"] and not run.values["token_tilt"] and not run.values["phased_ttt.qv"]
    with pytest.raises(ValueError, match=r"phased_ttt\.qv"):
        settings("", {"PHASED_TTT_ENABLED": "1", "TTT_MASK": "no_q"})
