"""The environment's layer of settings: the variables of the published trainers that something here answers to
(the others: techniques/unanswered.py). No torch here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from techniques.base import SLOTS, Technique, claims
from techniques.config import TRAINER_FIELDS

# Variables that are a setting of ours under another name.
ALIASES = {
    "GPTQ_RESERVE_SECONDS": "reserve_seconds",
    "CASEOPS_ENABLED": "caseops",
    "VAL_BATCH_TOKENS": "val_batch_size",
}
# Variables that only switch a technique whose other variables switch it too.
GATES = {
    "EMA_ENABLED": "ema",
    "SLIDING_WINDOW_ENABLED": "sliding_window",
    "USE_GPTQ": "gptq",  # #1060, #1204
    "POLAR_EXPRESS": "polar_express",
    "MUON_EQ_R": "muoneq_r",
    "UNTIE_LOOP_MLPS": "untie_mlp",
}
# Variables whose value chooses a variant: value -> settings, `name` alone being a technique's gate.
MODES: dict[str, dict[str, dict[str, Any]]] = {
    "GATED_ATTENTION": {"1": {"attention_gate": True, "attention_gate.mode": "bias"}},  # #549
    "ATTN_OUT_GATE_ENABLED": {"1": {"attention_gate": True, "attention_gate.mode": "out"}},  # #1667
    "GATED_ATTN_ENABLED": {"1": {"attention_gate": True, "attention_gate.mode": "gated"}},  # #1736
    "SPARSE_ATTN_GATE_ENABLED": {"1": {"attention_gate": True, "attention_gate.mode": "sparse"}},  # #1787
    "VALUE_RESIDUAL": {"1": {"value_residual": True, "value_residual.mode": "lambda"}},  # #413, #549
    "VRL": {"1": {"value_residual": True, "value_residual.mode": "add"}},  # #569
    "SMEAR_GATE": {"1": {"smear_gate": True, "smear_gate.mode": "input_gate"}},  # #1667
    "SMEAR_GATE_ENABLED": {"1": {"smear_gate": True, "smear_gate.mode": "input_gate"}},  # #1855
    "GATED_XSA": {"1": {"xsa": True, "xsa.mode": "gate"}},  # #2018
    "GATED_XSA_RESIDUAL": {"1": {"xsa": True, "xsa.mode": "residual"}},
    "FP16_EMBED_EXPORT": {  # #42, beside int8 matrices
        "1": {
            "mixed_bits": True,
            "mixed_bits.embed_bits": 16,
            "mixed_bits.attn_bits": 8,
            "mixed_bits.mlp_bits": 8,
        }
    },
    "MUON_POLAR_EXPRESS": {"1": {"polar_express": True}},
    "LATE_QAT": {"1": {"late_qat": True}},
    "QAT_ENABLED": {"1": {"late_qat": True, "late_qat.threshold": 2.0}},  # from the first step
    "USE_ZSTD": {"1": {"zstd": True}},
    "PARALLEL_RESIDUAL": {"1": {"parallel_residual": True, "parallel_residual.mode": "routed"}},  # #1204
    "PARALLEL_FINAL_LANE_MEAN": {"1": {"parallel_residual.final": "mean"}},
    "SLOT_MASK": {mask: {"slot.mask": mask} for mask in ("scored", "context")},
    "COMPRESSOR": {
        name: {codec: codec == own for codec in ("lzma_xz", "zstd", "brotli_shuffle", "per_group", "ans")}
        for name, own in {
            "zlib": "",
            "zstd": "zstd",
            "lzma": "lzma_xz",
            "brotli": "brotli_shuffle",
            "pergroup": "per_group",
        }.items()
    },
}
# Variables that set something of a technique that something else turned on; beside one that is off they mean
# what they meant where they came from: nothing.
DETAILS: dict[str, tuple[str, ...]] = {
    "GATE_WINDOW": ("attention_gate.window", "smear_gate.window"),
    "SPARSE_ATTN_GATE_SCALE": ("attention_gate.kappa",),
    "NEGATIVE_SLOPE": ("leaky_relu2.slope",),
    "LEAKY_RELU_SQ_SLOPE": ("leaky_relu2.slope",),
    "ATTN_OUT_GATE_SRC": ("attention_gate.source",),
    "GATE_ATTN_SRC": ("attention_gate.source",),
    "INT4_STEP": ("layer_bits.bits",),
    "TTT_MASK": ("phased_ttt.qv", "lora_ttt.qv"),
    "AWQ_LITE_GROUP_SIZE": ("awq_lite.group",),
    "ROPE_TRAIN_SEQ_LEN": ("partial_rope.train_len",),
    "MATRIX_BITS": ("mixed_bits.attn_bits", "mixed_bits.mlp_bits"),
    "MATRIX_CLIP_SIGMAS": ("sdclip.attn_k", "sdclip.mlp_k"),
    "HESSIAN_CLIP_LAMBDA": ("sdclip.hessian_lambda",),
    "PRUNE_FRAC": ("prune.fraction",),
    "ZSTD_LEVEL": ("zstd.level",),
}
# What a word of such a variable means to us.
WORDS = {
    "TTT_MASK": {"": "1", "all": "1", "baseline_all": "1", "no_qv": "0"},
    "ATTN_OUT_GATE_SRC": {"proj": "input"},
    "GATE_ATTN_SRC": {"proj": "input"},
    "INT4_STEP": {"2": "7", "4": "6", "8": "5", "16": "4"},
}
# Of several techniques that read a variable, none of them on, it speaks to one of these.
SPOKEN_TO = ("score_first_ttt", "token_tilt")


def is_off(value: str) -> bool:
    return value.strip().lower() in ("", "0", "0.0", "false", "off", "none")


def chosen(environ: Mapping[str, str], known: Collection[str]) -> dict[str, Any]:
    """The settings that MODES' variables choose. ValueError for a value that chooses nothing known here.

    `known`: the techniques there are. A variable that is off turns its own variants off, no others."""
    layer: dict[str, Any] = {}
    for variable, options in MODES.items():
        value = environ.get(variable, "").strip().lower()
        value = "1" if value in ("true", "on") else value
        if is_off(value):
            continue
        ours = {v: s for v, s in options.items() if any(n.split(".")[0] in known for n in s)}
        wanted = {name for name, setting in options.get(value, {"": True}).items() if setting is not False}
        if not {name.split(".")[0] for name in wanted} <= {*known}:
            raise ValueError(
                f"`{variable}` chooses one of {', '.join(map(repr, ours)) or 'nothing here'}, but got "
                f"{environ[variable]!r}."
            )
        layer |= {n: s for n, s in options[value].items() if n.split(".")[0] in known}
    return layer


def details(environ: Mapping[str, str], on: Collection[str]) -> dict[str, str]:
    """The settings that DETAILS' variables give the techniques that are `on`."""
    said = {v: WORDS.get(v, {}).get(environ[v].strip().lower(), environ[v]) for v in DETAILS if v in environ}
    given = {name: said[v] for v, names in DETAILS.items() if v in said for name in names}
    return {name: value for name, value in given.items() if name.split(".")[0] in on}


def from_environment(
    environ: Mapping[str, str],
    known: Mapping[str, type[Technique]],
    on: Collection[str] = (),
    model_dim: Any = TRAINER_FIELDS["model_dim"].default,
) -> dict[str, Any]:
    """The layer that the field's standard variables give. A technique's variable turns it on, `0` turns it
    off. `on`: what lower layers turned on; a variable that several techniques read is theirs that are on.
    `model_dim`: the lower layers' width, of which MLP_HIDDEN is a multiple."""
    layer: dict[str, Any] = {n: environ[n.upper()] for n in TRAINER_FIELDS if n.upper() in environ}
    if not is_off(environ.get("MLP_HIDDEN", "")):
        layer["mlp_mult"] = int(environ["MLP_HIDDEN"]) / int(layer.get("model_dim", model_dim))
    layer |= {field: environ[v] for v, field in ALIASES.items() if v in environ}
    layer |= {n: not is_off(environ[v]) for v, n in GATES.items() if v in environ and n in known}
    modes = chosen(environ, known)
    layer |= modes
    on = {*on, *(n for n, value in modes.items() if n in known and value)}
    switched = _switched(environ, known, on)
    off = {
        n
        for n in known
        if layer.get(n) is False or any(is_off(environ.get(v, "1")) for v in _gates(known[n]))
    }
    live = (set(on) | switched) - off
    for name, technique in known.items():
        heard = {v: {*on, *switched} if field == "on" else live for v, field in technique.env.items()}
        ours = [v for v in technique.env if v in environ and name in _readers(v, known, heard[v])]
        given = {technique.env[v]: environ[v] for v in ours}
        if not given:
            continue
        rival = _rival(name, known, live)
        if rival:  # EVAL_STRIDE beside TTT_ENABLED=1 is the stride of that scorer
            inner = {f.name for f in fields(known[rival].Config)}
            layer.update({f"{rival}.{field}": v for field, v in given.items() if field in inner})
            continue
        gate = given.pop("on", None)
        inner = {f.name: f for f in fields(technique.Config)}
        if gate is None and not _gates(technique):  # the value itself is the gate: XSA_LAST_N=0 is off
            gate = "0" if any(_means_off(v, inner[field]) for field, v in given.items()) else "1"
        if gate is not None:
            layer[name] = layer.get(name, True) and not is_off(gate)
        if layer.get(name, True):  # without a gate, the settings of a technique that a preset turned on
            layer.update({f"{name}.{field}": v for field, v in given.items()})
    live = {*live, *(n for n in known if layer.get(n))} - {n for n in known if layer.get(n) is False}
    return details(environ, live) | layer


def _gates(technique: type[Technique]) -> list[str]:
    """Its variables that only switch it."""
    return [v for v, field in technique.env.items() if field == "on"]


def _switched(
    environ: Mapping[str, str], known: Mapping[str, type[Technique]], on: Collection[str]
) -> set[str]:
    """What the environment turns on: first by variables that one technique reads, then by shared ones."""
    given = [v for v in {v for t in known.values() for v in _gates(t)} if not is_off(environ.get(v, "0"))]
    found: set[str] = set()
    for variable in sorted(given, key=lambda v: sum(v in t.env for t in known.values())):
        found |= {*_readers(variable, known, {*on, *found})}
    return found


def _readers(variable: str, known: Mapping[str, type[Technique]], live: Collection[str]) -> list[str]:
    """The techniques that `variable` speaks to: those that are on, where several read it, or else one."""
    readers = [n for n, t in known.items() if variable in t.env]
    if len(readers) < 2:
        return readers
    return [n for n in readers if n in live] or [n for n in SPOKEN_TO if n in readers] or readers[:1]


def _means_off(value: str, like: dataclasses.Field[Any]) -> bool:
    """Whether 0 says `off` here: it does where it is no legal value of the setting."""
    low = like.metadata["low"]
    return value.strip() in ("0", "0.0", "") and low is not None and low > 0


def _rival(name: str, known: Mapping[str, type[Technique]], live: Collection[str]) -> str | None:
    """The technique that is on in a slot that `name` claims, if `name` is off and has no gate variable."""
    slots = set(claims(known[name])) & set(SLOTS)
    if name in live or _gates(known[name]):
        return None
    return next((n for n in known if n in live and slots & set(claims(known[n]))), None)


def answered_names(known: Mapping[str, type[Technique]]) -> set[str]:
    """Every variable that means something here."""
    switches = {v for v, name in GATES.items() if name in known}
    switches |= {v for v, names in DETAILS.items() if all(n.split(".")[0] in known for n in names)}
    switches |= {
        v
        for v, options in MODES.items()
        if any(n.split(".")[0] in known for s in options.values() for n in s)
    }
    return (
        {n.upper() for n in TRAINER_FIELDS}
        | {v for t in known.values() for v in t.env}
        | switches
        | {*ALIASES, "MLP_HIDDEN"}
    )
