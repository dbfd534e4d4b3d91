"""The variables of the challenge's published scripts that no setting and no technique here answers to, and
what becomes of each: nothing of a published run command is dropped in silence. No torch here.

FIXED: the values that say what is computed here anyway; any other is refused. INERT: changes no result here.
REFUSED: what it sets is not here, or has another name; off ("" or 0) it says what is so here anyway. One that
stands in no list and looks like the challenge's is an error, too. The names are those read by the 69 trainers
in records/, results/ and the root of openai/parameter-golf (May 2026), those of the run commands beside them,
and those of the pull requests that docs/techniques.md cites.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping

from techniques.base import Technique
from techniques.published import DETAILS, GATES, MODES, answered_names, is_off

# name -> (the values that are so here, why others are refused)
FIXED: dict[str, tuple[str, str]] = {
    "LQER_ASYM_ENABLED": ("1", "lqer has the asymmetric factors alone"),
    "LQER_FACTOR_BITS": ("4", "lqer stores B in 4 bits; in #1855 the asymmetric form does not read this one"),
    "TTT_OPTIMIZER": ("adam adamw", "adapters take AdamW, score_first_ttt SGD"),
    "GLOBAL_TTT_OPTIMIZER": ("sgd", "phases take SGD"),
    "TTT_GRAD_STEPS_CLEAN": ("0", "each of grad_steps is a forward of its own"),
    "TTT_LORA_EMA_DECAY": ("0 0.0", "adapters are scored as the last step left them"),
    "TTT_UPDATE_EVERY": ("1", "a step behind every chunk (grad_steps: several)"),
    "TTT_SHORT_SCORE_FIRST_ENABLED": ("1", "TTT_SHORT_SCORE_FIRST_STEPS turns short chunks on; leave it out"),
    "AWQ_LITE_BITS": ("8", "awq_lite stores its group in 8 bits"),
    "AWQ_LITE_GROUP_TOP_K": ("1", "awq_lite takes the most salient group"),
    "NGRAM_HINT_PRECOMPUTE_OUTSIDE": ("0", "hints are part of the timed evaluation"),
    "WITHIN_BOOST": ("0 0.0", "experts within words looked at the target (#1420); tokens alone are counted"),
    "WORD_BOOST": ("0 0.0", "experts of word starts looked at the target (#1420); tokens alone are counted"),
    "AGREE_ADD_BOOST": ("0 0.0", "one expert: it has nobody to agree with"),
    "GATED_XSA_RESIDUAL_SPAN": ("1 1.0", "xsa.mode=residual is 1 + tanh(α)"),
    "TRAIN_SEQ_SCHEDULE_MODE": ("wallclock", "a stage ends at a share of the budget"),
    "LQER_SCOPE": ("all", "lqer corrects whichever matrices are worst"),
    "LQER_GAIN_SELECT": ("0", "lqer ranks by the error's norm"),
    "VAL_DOC_FRACTION": ("1 1.0", "VAL_TOKENS scores a part"),
    "SPARSE_ATTN_GATE_INIT_STD": ("0 0.0", "the sparse gate begins at zero"),
    "GATED_ATTN_INIT_STD": ("0.005", "the gate of #1736 begins with this std"),
    "PARALLEL_RESIDUAL_START": ("-1", "set parallel_residual.mode=single and parallel_residual.start"),
    "PARALLEL_START_LAYER_IS_PHYSICAL": ("1", "parallel_residual counts physical layers"),
    "INT6_LAYER_START": ("-1", "bits are set by role (ATTN_BITS, MLP_BITS, EMBED_BITS), not by layer"),
    "INT6_LAYER_END": ("-1", "bits are set by role (ATTN_BITS, MLP_BITS, EMBED_BITS), not by layer"),
    "QUANT_CLIP_RANGE": ("31", "the clip range follows from the bits"),
    "REPEAT_UNTIE_MLP": ("none full", "untie_mlp copies both matrices; turn it on by RECUR_UNTIE_MLP=1"),
    "ACTIVATION": ("relu2", "leaky_relu2 and relu² are here"),
    "ROPE_TYPE": ("rope", "partial_rope.train_len scales the base; YaRN is not here"),
    "SOFTCAP_TYPE": ("tanh", "softcap.mode has other caps"),
    "LR_SCHEDULE": ("linear", "warmdown and WARMDOWN_ITERS are linear"),
    "WARMDOWN_SHAPE": ("linear", "warmdown and WARMDOWN_ITERS are linear"),
    "MATRIX_OPTIMIZER": ("muon", "matrices take Muon"),
    "EVAL_TEMP": ("1 1.0", "scores have no temperature"),
    "TEMP_SCALING": ("0", "scores have no temperature"),
    "CLIP_MULT_EARLY": ("1 1.0", "SDClip's widths are set by role"),
    "CLIP_MULT_MID": ("1 1.0", "SDClip's widths are set by role"),
    "CLIP_MULT_LOOP": ("1 1.0", "SDClip's widths are set by role"),
    "CLIP_MULT_LATE": ("1 1.0", "SDClip's widths are set by role"),
    "TRAINING_DEPTH_RECURRENCE": ("0 1", "set NUM_LOOPS, LOOP_START, LOOP_END"),
    "EVAL_DEPTH_RECURRENCE": ("0 1", "set NUM_LOOPS, LOOP_START, LOOP_END"),
}

# (why it changes no result here, names)
INERT: tuple[tuple[str, str], ...] = (
    (
        "the launcher's",
        "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT",
    ),
    (
        "data_path and tokenizer_path name files whole",
        "DATA_DIR DATASETS_DIR TRAIN_FILES VAL_FILES",
    ),
    (
        "out_dir is where a run's files go",
        "ARTIFACT_DIR CHECKPOINT_DIR CHECKPOINT_EVERY MODEL_SAVE_PATH TTT_OUTPUT_DIR",
    ),
    (
        "speed and log alone",
        "COMPILE_MODE COMPILE_MODEL USE_COMPILE CHURN_LOG_EVERY SLIDING_BATCH_SIZE EVAL_BATCH_SEQS "
        "EVAL_BATCH_SIZE SW_EVAL_BATCH SLOT_BATCH_SEQS GPTQ_BATCH_SIZE LOGIT_CHUNK_TOKENS "
        "COMPILE_SHAPE_WARMUP COMPILE_SHAPE_WARMUP_ITERS COMPILE_SHAPE_WARMUP_LOOP_MODES "
        "PERGROUP_ROUNDTRIP_CHECK TTT_HEARTBEAT_SECONDS MLX_EAGER_EVAL MLX_MAX_MICROBATCH_TOKENS "
        "USE_INT8_KERNEL USE_TRITON_KERNEL",
    ),
    (
        "a word that a shell may use for itself, of scripts outside the records",
        "MODE TOKENIZER EXPAND STRIDE",
    ),
    (
        "read by its scripts and used nowhere in them",
        "MUON_BETA2",
    ),
    (
        "of hints by words, whose strength has its own row",
        "WITHIN_TAU WORD_TAU WORD_ORDER WORD_NORMALIZE",
    ),
    (
        "read only where TTT_SHORT_SCORE_FIRST_STEPS is empty",
        "TTT_SHORT_DOC_LEN TTT_SHORT_CHUNK_SIZE",
    ),
)

# (what is missing, or what to set instead, names)
REFUSED: tuple[tuple[str, str], ...] = (
    (
        "one decay for all there: set MUON_WD, ADAM_WD, EMBED_WD",
        "WEIGHT_DECAY ADAM_WEIGHT_DECAY TTT_WD",
    ),
    (
        "bits are set by role (ATTN_BITS, MLP_BITS, EMBED_BITS), by layer_bits or by sensitivity_bits",
        "INT6_LAYERS INT6_STEP N_INT6_LAYERS MIXED_QUANT LOOP_LAYER_BITS QUANT_BITS "
        "QUANT_BITS_EMBED QUANT_BITS_MLP QAT_BITS USE_INT6 QUANT_CONFIG ATTN_INT5 MLP_INT5",
    ),
    (
        "mixed_bits.embed_bits=16 keeps the embedding, nothing else",
        "FP16_KEEP_NAME_PATTERNS FP16_PASSTHROUGH_PATTERNS INT8_FULL_RANGE_PATTERNS FP_STORAGE SCALE_STORAGE",
    ),
    (
        "fake quantisation: set LATE_QAT_THRESHOLD (2: from the first step); its bits are the export's",
        "QAT_INT6 QAT_THRESHOLD QAT QAT_FRACTION QAT_START_FRAC QAT_AFTER_STEP",
    ),
    (
        "set GPTQ_RESERVE_SECONDS",
        "GPTQ_RESERVE_MS",
    ),
    (
        "set gptq.calibration, gptq.self_sequences, gptq.self_tokens, gptq.temperature",
        "GPTQ_AR_SELFGEN GPTQ_CALIB_SAMPLES GPTQ_TEMPERATURE GPTQ_GEN_TEMP GPTQ_GEN_LEN GPTQ_NUM_SEQS",
    ),
    (
        "the split's last positions, fewer than a sequence, are not scored here",
        "EVAL_INCLUDE_TAIL",
    ),
    (
        "set seq_schedule.rewarm, a share of the budget",
        "SEQ_CHANGE_WARMUP_STEPS",
    ),
    (
        "smear_gate.mode=input_gate always masks BOS; without that documents leak (#1797 audit)",
        "SMEAR_GATE_BOS_FIX",
    ),
    (
        "another optimiser of the matrices (NorMuon, Huber decay) is not here",
        "SKYLIGHT_MUON SKYLIGHT_NORM_EMA SKYLIGHT_UW_FLOOR MUON_HUBER_WD",
    ),
    (
        "set sdclip's widths by ATTN_CLIP_SIGMAS, MLP_CLIP_SIGMAS, EMBED_CLIP_SIGMAS",
        "GPTQ_CLIP_SIGMAS GPTQ_EMBED_CLIP_SIGMAS LOOP_LAYER_CLIP_SIGMAS",
    ),
    (
        "set gptq_lite",
        "GPTQ_LITE",
    ),
    (
        "set NUM_LOOPS, LOOP_START, LOOP_END, ENABLE_LOOPING_AT, depth_recurrence.stagger",
        "RECUR_LAYERS RECUR_START_STEP LOOP_PHASE2_AT LOOP_CORE_LAYERS LOOP_REPEATS "
        "REPEAT_UNTIE_MLP_LAYERS UNTIE_AT_FRACTION NUM_UNIQUE_BLOCKS EFFECTIVE_DEPTH NUM_VIRTUAL_LAYERS "
        "DEPTH_LORA_RANK",
    ),
    (
        "set prune.fraction or prune.target_bytes",
        "PRUNE_PCT PRUNE_RATIO TARGET_MB",
    ),
    (
        "set COMPRESSOR",
        "USE_LZMA USE_BROTLI LZMA",
    ),
    (
        "set BIGRAM_VOCAB_SIZE and BIGRAM_DIM",
        "BIGRAM_BUCKETS BIGRAM_HASH BIGRAM_HASH_BUCKETS BIGRAM_HASH_DIM USE_BIGRAM_HASH BIGRAM",
    ),
    (
        "set SMEAR_GATE_ENABLED or smear_gate.mode",
        "SMEAR USE_SMEARGATE SMEAR_GATE_WIDTH",
    ),
    (
        "set ATTN_OUT_GATE_ENABLED and GATE_WINDOW",
        "GATE_ATTN_OUT GATE_WIDTH",
    ),
    (
        "set MTP_NUM_HEADS",
        "MTP_HEADS",
    ),
    (
        "set EMA_DECAY or swa",
        "EMA EMA_START_FRACTION SWA_DECAY",
    ),
    (
        "averages of the last checkpoints (LAWA) are not here",
        "LAWA_ENABLED LAWA_K LAWA_FREQ",
    ),
    (
        "set WARMDOWN_FRAC",
        "WARMDOWN_FRACTION",
    ),
    (
        "set EVAL_STRIDE",
        "SLIDING_EVAL SLIDING_EVAL_STRIDE EVAL_OVERLAP",
    ),
    (
        "set VAL_TOKENS, a proxy",
        "VAL_MAX_TOKENS VAL_MAX_BATCHES",
    ),
    (
        "set seq_schedule or batch_schedule",
        "SEQ_LEN_START SEQ_SCHEDULE_FRACTION SEQ_LEN_SCHEDULE BATCH_TOKENS_START BATCH_SCHEDULE_FRACTION "
        "TRAIN_MAX_SEQ_LEN",
    ),
    (
        "set micro_batches",
        "GRAD_ACCUM_STEPS",
    ),
    (
        "set ortho_init",
        "USE_ORTHO_INIT",
    ),
    (
        "set value_embedding",
        "VE_TYPE",
    ),
    (
        "set shuffled_loader and varlen_attention; packing by documents is not here",
        "DOC_PACKING",
    ),
    (
        "set factored_embedding.dim",
        "EMBED_DIM EMBED_INNER_DIM",
    ),
    (
        "a run stops at no half: resume reuses finished stages",
        "PREQUANT_ONLY TTT_EVAL_ONLY TTT_ONLY TTT_ONLY_EVAL POST_GPTQ_EVAL_ONLY SKIP_POST_TRAIN_EVAL "
        "EVAL_ONLY_PATH EVAL_ONLY_QUANTIZED_PATH RESUME_FROM TTT_DEBUG_BYPASS SWEEP_MODE",
    ),
    (
        "phased_ttt scores every document",
        "TTT_EVAL_BATCHES TTT_DOC_LIMIT GLOBAL_TTT_DOC_LIMIT",
    ),
    (
        "this form of test-time training is not here",
        "TTT_COSINE TTT_PERLAYER TTT_MIN_LR TTT_FREEZE_EMBED TTT_ENTROPY_HIGH TTT_ENTROPY_LOW TTT_NS_STEPS",
    ),
    (
        "set layer_rates.early and layer_rates.late, factors of matrix_lr (they did nothing in #1204)",
        "MATRIX_LR_EARLY MATRIX_LR_LATE BANK_SPLIT",
    ),
    (
        "set canon.last_n and canon.where",
        "CANON_AC_LAYERS",
    ),
    (
        "rates by bank or phase of training are not here",
        "BIGRAM_LR_SCALE BLOCK_LARS_TRUST BLOCK_LARS_MIN_SCALE "
        "MUON_COOLDOWN_START MUON_COOLDOWN_END LR_WARMUP_STEPS LR_START ADAM_LR USE_GRAM_NS "
        "INDEPENDENT_LR",
    ),
    (
        "YaRN is not here; partial_rope.train_len scales the base",
        "ROPE_YARN YARN_MAX_LEN EVAL_NTK_ALPHA",
    ),
    (
        "a temperature of the scores is not here",
        "TEMP_CALIB EVAL_TEMPERATURE",
    ),
    (
        "not here: gates of the whole block, trigrams, attention variants, learnt wraps",
        "DTG_ENABLED TRIGRAM DIFF_ATTN ATTN_RES ATTN_VARIANT "
        "ATTN_PROJ_TYPE LATENT_KV_DIM MLP_GROUPS MLP_EVERY MLP_RANK BLOCK_TYPE LOGIT_HEAD_TYPE USE_WRAP "
        "WRAP_INIT_SCALE REFINER REFINER_KERNEL LORA_RANK LORA_LR NUM_LIGHT_BLOCKS SKIP_TOKENS "
        "NGRAM_WITHIN_BETA NGRAM_WORD_BETA",
    ),
    (
        "of scripts with another model than this one (ternary, binary, JEPA, state space, "
        "diffusion, H-Net, GDN)",
        "BITNET_GROUP_SIZE BINARIZE_ACTIVATIONS XNOR_GROUP_SIZE SIGN_COMPRESS_REG CORR_WEIGHT_LR "
        "TVERSKY_FEATURE_POOLS TVERSKY_MEMBERSHIP TVERSKY_NUM_FEATURES EGGROLL_LOAD EGGROLL_LR "
        "EGGROLL_RANK EGGROLL_SIGMA EGGROLL_LAYERS EGGROLL_LORA_RANK FITNESS_SHAPING POP_SIZE CE_WEIGHT "
        "CE_PURE_FRAC JEPA_WEIGHT JEPA_PURE_FRAC JEPA_PRETRAIN_FRAC JEPA_STEPS PREDICTOR_HIDDEN_MULT "
        "PROJECTOR_TYPE DETACH_TARGETS SIGREG_KNOTS SIGREG_LAMBDA SIGREG_NUM_PROJ SIGREG_SCHEDULE "
        "SIGREG_WEIGHT HNET_LR_DIFF OUTER_LAYERS RATIO_LOSS_WEIGHT TARGET_AVG_CHUNK_LEN D_CONV D_STATE "
        "NUM_ATTN_LAYERS EVAL_STATE_RESET MAMBA3_CHUNK_SIZE MAMBA3_D_STATE MAMBA3_EXPAND MAMBA3_HEADDIM "
        "MAMBA3_NGROUPS MAMBA3_OUTPROJ_NORM MAMBA3_ROPE_FRACTION GDN_CONV_SIZE GDN_EXPAND_V "
        "GDN_HEAD_DIM_RATIO GDN_LAYERS GDN_N_HEADS LEGENDRE_DEGREE_ATTN LEGENDRE_DEGREE_FFN "
        "LEGENDRE_GROUPS COEFF_LR_BASE COEFF_LR_SCALE",
    ),
    (
        "parameters have roles here, not name patterns",
        "CONTROL_TENSOR_NAME_PATTERNS INT8_KEEP_FLOAT_FP32_NAME_PATTERNS",
    ),
)

# What belongs to the shell, whatever it looks like: first words.
SHELL = frozenset(
    "CUDA NVIDIA NCCL OMP MKL KMP GOMP TORCH TORCHINDUCTOR TORCHELASTIC PYTORCH TRITON PYTHON PIP UV CONDA "
    "VIRTUAL LD LC XDG SSH GIT CI GITHUB GITLAB SLURM KUBERNETES HF WANDB AWS AZURE GOOGLE DOCKER FLASH "
    "PARALLEL OPTUNA JUPYTER VSCODE".split()
)
# Words of the field that no shell has: a variable with one of them is meant for a trainer.
FIELD = frozenset(
    "TTT XSA EMA SWA LAWA QAT GPTQ AWQ LQER SDCLIP MUON ROPE YARN BIGRAM TRIGRAM SMEAR SLOT LORA MTP JEPA "
    "WARMDOWN SOFTCAP LOOPING LOOPS RECUR VRL CASEOPS SIGMAS LR WD ATTN MLP QK INT4 INT5 INT6 INT8 ZSTD "
    "UNTIE PHASED".split()
)


def by_name(table: Iterable[tuple[str, str]]) -> dict[str, str]:
    """name -> reason."""
    return {name: reason for reason, names in table for name in names.split()}


REFUSALS = by_name(REFUSED)
NAMES = frozenset({*FIXED, *by_name(INERT), *REFUSALS})  # every one of the three lists
ELSEWHERE = frozenset({*GATES, *MODES, *DETAILS})  # answered where their technique is in the catalogue


def environment_names(known: Mapping[str, type[Technique]], environ: Iterable[str] = ()) -> set[str]:
    """Every variable that would change or stop a run: what a worker strips before it starts a trial. Of
    `environ`, also those that only look so."""
    names = (answered_names(known) | ELSEWHERE | NAMES) - {*by_name(INERT)}
    return names | {n for n in environ if looks_published(n, names)}


def looks_published(name: str, names: Iterable[str]) -> bool:
    """Whether a variable in no list seems to be meant for a trainer: it has a word of the field, or is a slip
    of the pen away from one of `names`."""
    words = name.split("_")
    if name != name.upper() or words[0] in SHELL or len(words) < 2:
        return False
    return bool(FIELD.intersection(words)) or bool(slip_of(name, names))


def slip_of(name: str, names: Iterable[str], cutoff: float = 0.9) -> str:
    """The one of `names` that `name` is almost, or nothing."""
    near = [n for n in names if abs(len(n) - len(name)) <= 2 and n[:1] == name[:1]]
    return next(iter(difflib.get_close_matches(name, near, n=1, cutoff=cutoff)), "")


def refuse_unanswered(environ: Mapping[str, str], known: Mapping[str, type[Technique]]) -> None:
    """ValueError naming every variable of `environ` that a published script reads, that says something else
    than what is so here, and that nothing here answers to; and every one that only looks like that."""
    answered = answered_names(known)
    told = {n: why_refused(n, environ[n], answered) for n in sorted(set(environ) - answered - {"PRESET"})}
    lost = [f"{name}={environ[name]} ({reason})" for name, reason in told.items() if reason]
    if lost:
        raise ValueError(
            f"Every published variable must mean something here, but nothing in this trainer answers to: "
            f"{', '.join(lost)}. Unset {'it' if len(lost) == 1 else 'them'}, or use the setting that --help "
            f"names."
        )


def why_refused(name: str, value: str, answered: Collection[str]) -> str:
    """The reason against a variable that is not among the answered ones, or nothing."""
    if name in FIXED:
        values, reason = FIXED[name]
        return "" if value.strip().lower() in values.split() else reason
    if name in REFUSALS:
        return "" if is_off(value) else REFUSALS[name]
    if name in ELSEWHERE:
        return "" if is_off(value) else "the technique that it sets is not here"
    names = {*answered, *NAMES, *ELSEWHERE}
    if name in NAMES or not looks_published(name, names):
        return ""
    near = slip_of(name, names, 0.6) or next(iter(difflib.get_close_matches(name, names, 1, 0.5)), "")
    return "in no list" + (f"; did you mean {near}?" if near else "")
