"""The trainer's settings, and how layers of them become every value of a run.

Flat names everywhere: `num_layers` is a trainer setting, `xsa` is a technique's gate (0 or 1, off by
default), `xsa.last_n` is a technique's setting. Files may nest (`[xsa] last_n = 4` means gate on). No torch
here.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from techniques import catalog
from techniques.base import (
    ROLES,
    SLOTS,
    STAGES,
    Batch,
    Cost,
    Shape,
    Technique,
    check_value,
    claims,
    nearest,
    parse_value,
    setting,
)

PRESETS = Path(__file__).resolve().parent.parent / "studies" / "presets"
OF_A_PLACE = ("out_dir", "run_id")  # settings of one run on one machine, no part of a configuration
LAYERS = ("preset", "file", "environment", "command line")  # low to high precedence


@dataclass(frozen=True)
class Config:
    """The trainer's own settings; defaults are the challenge's naive baseline. Environment names are the
    upper case."""

    # data
    data_path: str = setting("data/datasets/fineweb10B_sp1024", "folder of the token shards", stage="data")
    tokenizer_path: str = setting(
        "data/tokenizers/fineweb_1024_bpe.model", "SentencePiece model", stage="data"
    )
    vocab_size: int = setting(1024, "tokens in the vocabulary", low=4, high=65_536, stage="data")
    caseops: bool = setting(False, "the data must be CaseOps (they are scored so anyway)", stage="data")
    # model
    num_layers: int = setting(9, "blocks", low=1, high=64)
    model_dim: int = setting(512, "width of the residual stream", low=8, high=8192)
    num_heads: int = setting(8, "query heads", low=1, high=128)
    num_kv_heads: int = setting(4, "key/value heads", low=1, high=128)
    mlp_mult: float = setting(2.0, "hidden width of the MLP, in model_dims", low=0.25, high=16.0)
    tie_embeddings: bool = setting(True, "share the embedding with the output head")
    tied_embed_init_std: float = setting(0.005, "init std of a tied embedding", low=0.0, high=1.0)
    rope_base: float = setting(10_000.0, "base of the rotary wavelengths", low=1.0)
    logit_softcap: float = setting(30.0, "c of c·tanh(logits/c)", low=1e-3)
    unet_skips: bool = setting(True, "the first half's blocks reach the second half's through skips")
    # batch and budget
    train_batch_tokens: int = setting(524_288, "tokens per step over all ranks", low=1)
    train_seq_len: int = setting(1024, "tokens per training sequence", low=2)
    micro_batches: int = setting(8, "equal parts of a step's batch; the world size must divide it", low=1)
    iterations: int = setting(20_000, "steps at most", low=1)
    max_wallclock_seconds: float = setting(
        600.0, "timed training seconds at most, on a CPU of the processor; 0: steps only", low=0.0
    )
    reserve_seconds: float = setting(0.0, "training seconds kept back for calibration, s", low=0.0)
    warmup_steps: int = setting(20, "discarded steps that trigger compilation", low=0)
    warmdown_iters: int = setting(1200, "last steps over which learning rates fall to 0", low=0)
    # optimisers
    embed_lr: float = setting(0.6, "Adam, untied embedding", low=0.0)
    head_lr: float = setting(0.008, "Adam, untied head", low=0.0)
    tied_embed_lr: float = setting(0.05, "Adam, tied embedding", low=0.0)
    matrix_lr: float = setting(0.04, "Muon, matrices", low=0.0)
    scalar_lr: float = setting(0.04, "Adam, vectors and scalars", low=0.0)
    grad_clip_norm: float = setting(0.0, "global gradient norm at most; 0: off", low=0.0)
    seed: int = setting(1337, "seed of initialisation and data order", low=0, high=2**62)
    # artifact
    quantize_min_numel: int = setting(
        65_537, "matrices of fewer elements are stored as fp16", low=1, stage="quantize"
    )
    # evaluation
    eval_seq_len: int = setting(
        0, "tokens per evaluation sequence; 0: train_seq_len", low=0, stage="evaluate"
    )
    val_batch_size: int = setting(
        524_288, "tokens per evaluation batch over all ranks", low=1, stage="evaluate"
    )
    val_tokens: int = setting(
        0, "validation tokens to score; 0: all (anything else is a proxy)", low=0, stage="evaluate"
    )
    # what is told while training (changes no result)
    val_loss_every: int = setting(1000, "steps between validations; 0: only the last", low=0, stage="none")
    train_log_every: int = setting(200, "steps between log lines", low=0, stage="none")
    num_reports: int = setting(
        0, "early BPB reports, evenly spaced over the budget", low=0, high=100, stage="none"
    )
    report_tokens: int = setting(32_768, "validation tokens of an early report", low=1, stage="none")
    # where it runs
    device: str = setting("auto", "auto, cpu or cuda", choices=("auto", "cpu", "cuda"), stage="none")
    compute_dtype: str = setting(
        "auto", "auto: bfloat16 where it is fast", choices=("auto", "float32", "bfloat16")
    )
    compile: str = setting("auto", "auto: on a GPU", choices=("auto", "on", "off"), stage="none")
    attention: str = setting(
        "auto",
        "attention kernel; blocked: on a CPU",
        choices=("auto", "fa3", "fa2", "cudnn", "sdpa", "blocked"),
        stage="none",
    )
    num_threads: int = setting(0, "CPU threads; 0: torch's choice", low=0, stage="none")
    run_id: str = setting("", "name of the run; empty: a hash of the settings", stage="none")
    out_dir: str = setting("", "folder of the run's files; empty: runs/<run_id>", stage="none")
    resume: bool = setting(True, "reuse stages that are already finished in out_dir", stage="none")

    def shape(self) -> Shape:
        return Shape(
            vocab_size=self.vocab_size,
            num_layers=self.num_layers,
            model_dim=self.model_dim,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            mlp_mult=self.mlp_mult,
            seq_len=self.train_seq_len,
            eval_seq_len=self.eval_seq_len or self.train_seq_len,
            tie_embeddings=self.tie_embeddings,
            rope_base=self.rope_base,
            logit_softcap=self.logit_softcap,
            unet_skips=self.unet_skips,
        )

    def check(self) -> None:
        """ValueError for settings that contradict each other."""
        if self.model_dim % self.num_heads or (self.model_dim // self.num_heads) % 2:
            raise ValueError(
                f"`model_dim` must be an even multiple of `num_heads`, but got {self.model_dim} and "
                f"{self.num_heads}."
            )
        if self.num_heads % self.num_kv_heads:
            divisors = [k for k in range(1, self.num_heads + 1) if self.num_heads % k == 0]
            raise ValueError(
                f"`num_heads` must be a multiple of `num_kv_heads`, but got {self.num_heads} and "
                f"{self.num_kv_heads}. Use one of {', '.join(map(str, divisors))}."
            )
        part = self.micro_batches * self.train_seq_len
        if self.train_batch_tokens % part:
            raise ValueError(
                f"`train_batch_tokens` must be a multiple of micro_batches · train_seq_len = {part}, but got "
                f"{self.train_batch_tokens}. Use {max(1, round(self.train_batch_tokens / part)) * part}."
            )
        if self.reserve_seconds and self.reserve_seconds >= self.max_wallclock_seconds:
            raise ValueError(
                f"`reserve_seconds` must be less than `max_wallclock_seconds`, but got "
                f"{self.reserve_seconds} and {self.max_wallclock_seconds}. "
                f"A reserve only means something under a wall-clock budget."
            )


TRAINER_FIELDS = {f.name: f for f in fields(Config)}


@dataclass(frozen=True)
class Resolved:
    """Every value of a run and where it came from."""

    config: Config
    techniques: dict[str, Technique]  # the ones that are on, in chain order
    values: dict[str, Any]  # flat: trainer settings, every gate, settings of the techniques that are on
    origins: dict[str, str]  # name -> layer, for values that no default gave

    def shape(self) -> Shape:
        """The model's sizes, with the plan of a technique that repeats layers."""
        return self._shape

    @functools.cached_property
    def _shape(self) -> Shape:
        return _shape_of(self.config, self.techniques)

    @functools.cached_property
    def costs(self) -> dict[str, Cost]:
        """technique -> what it adds to this run."""
        return {name: technique.cost(self._shape) for name, technique in self.techniques.items()}

    def owner(self, slot: str) -> Technique | None:
        """The technique that fills a slot in this configuration."""
        assert slot in SLOTS, slot
        return next((t for t in self.techniques.values() if slot in claims(t)), None)

    def identity(self, last: str = STAGES[-1]) -> dict[str, Any]:
        """The values that results up to the stage `last` depend on; gates that are off are left out."""
        read = STAGES[: STAGES.index(last) + 1]
        own = {n for n, f in TRAINER_FIELDS.items() if f.metadata["stage"] in read}
        on = {n for n, t in self.techniques.items() if t.stage in read}
        return {k: v for k, v in self.values.items() if k in own or k.partition(".")[0] in on}

    def beside(self) -> dict[str, Any]:
        """What the submitted script says beside `identity()`: it changes no result but the script's size."""
        left_out = {*self.identity(), *OF_A_PLACE, "resume"}
        return {n: self.values[n] for n in TRAINER_FIELDS if n not in left_out} | {"num_reports": 0}

    def head(self) -> dict[str, Any]:
        """What the artifact says of its settings: those that it depends on, and no folder of this machine."""
        return {k: v for k, v in self.identity("pack").items() if k not in ("data_path", "tokenizer_path")}

    def hash(self) -> str:
        """Equal hashes are the same run."""
        return digest(self.identity())


def _shape_of(config: Config, techniques: Mapping[str, Technique]) -> Shape:
    shape = config.shape()
    for technique in techniques.values():
        if "sizes" in claims(technique):
            technique.check(shape)
            shape = technique.sizes(shape)
    for technique in techniques.values():
        if "plan" in claims(technique):
            technique.check(shape)
            shape = dataclasses.replace(shape, plan=tuple(technique.plan(shape)(1.0)))
    return shape


def batch_at(config: Config, techniques: Mapping[str, Technique], phase: float) -> Batch:
    """A training step's size from progress `phase` on: whole sequences in every micro-batch, at least one."""
    batch = Batch(config.train_batch_tokens, config.train_seq_len)
    for technique in techniques.values():
        batch = technique.batch(batch, phase)
    part = config.micro_batches * batch.seq_len
    return Batch(max(1, round(batch.tokens / part)) * part, batch.seq_len)


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def flatten(layer: Mapping[str, Any]) -> dict[str, Any]:
    """{"xsa": {"last_n": 4}} -> {"xsa": True, "xsa.last_n": 4}; flat names pass through."""
    flat: dict[str, Any] = {}
    for key, value in layer.items():
        if isinstance(value, Mapping):
            inner = dict(value)
            flat[key] = inner.pop("on", True)
            flat.update({f"{key}.{k}": v for k, v in inner.items()})
        else:
            flat[key] = value
    return flat


@functools.cache
def settings_of(technique: type[Technique]) -> dict[str, dataclasses.Field[Any]]:
    """setting -> its field; not to be changed."""
    return {f.name: f for f in fields(technique.Config)}


def known_field(name: str, known: Mapping[str, type[Technique]]) -> dataclasses.Field[Any] | None:
    """The field behind a flat name; None for a technique's gate. ValueError names the nearest known name."""
    if name in TRAINER_FIELDS:
        return TRAINER_FIELDS[name]
    if name in known:
        return None
    owner, _, inner = name.partition(".")
    if owner in known:
        settings = settings_of(known[owner])
        if inner in settings:
            return settings[inner]
        raise ValueError(f"{owner} has no setting {inner!r}. {nearest(inner, settings)}")
    raise ValueError(f"Unknown setting or technique {name!r}. {nearest(owner, [*TRAINER_FIELDS, *known])}")


def read_layer(path: Path) -> dict[str, Any]:
    """A JSON or TOML file as a flat layer. ValueError for what is neither, or no table of settings."""
    kind = "JSON" if path.suffix == ".json" else "TOML"
    try:
        text = path.read_text(encoding="utf-8-sig")
        layer: object = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except FileNotFoundError:
        raise ValueError(f"No configuration file {str(path)!r}.") from None
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not valid {kind}: {error}.") from None
    except RecursionError:
        raise ValueError(f"{str(path)!r} is no table of settings: it nests too deeply.") from None
    if not isinstance(layer, dict):
        raise ValueError(f"{str(path)!r} must hold settings by name, but is a {type(layer).__name__}.")
    return flatten(cast("dict[str, Any]", layer))


def read_preset(name: str) -> dict[str, Any]:
    """studies/presets/<name>.toml as a flat layer; its `[about]` table is prose, not settings."""
    layer = read_layer(preset_path(name))
    return {k: v for k, v in layer.items() if k != "about" and not k.startswith("about.")}


def preset_path(name: str) -> Path:
    names = sorted(p.stem for p in PRESETS.glob("*.toml"))
    if name not in names:
        raise ValueError(f"Unknown preset {name!r}. {nearest(name, names)}")
    return PRESETS / f"{name}.toml"


def inert_variables(name: str) -> set[str]:
    """Variables of the record's run command that did nothing in it, as `about.inert` of its preset lists:
    beside this preset they do nothing here."""
    return set(read_layer(preset_path(name)).get("about.inert", ()))


def resolve(layers: Mapping[str, Mapping[str, Any]], known: Mapping[str, type[Technique]]) -> Resolved:
    """Merge flat layers (keys of LAYERS) into every value of a run.

    Raises ValueError: unknown name, value out of range, techniques that exclude each other, a setting of a
    technique that is off, a trainer setting that a technique makes unread."""
    given: dict[str, tuple[Any, str]] = {}
    for origin in LAYERS:
        for name, value in flatten(layers.get(origin, {})).items():
            like = known_field(name, known)
            if like is None:
                on = value if isinstance(value, bool) else str(value).strip().lower() not in ("0", "false")
                if not on:  # a gate turned off forgets the settings that lower layers gave
                    for setting_name in settings_of(known[name]):
                        given.pop(f"{name}.{setting_name}", None)
                given[name] = (on, origin)
            else:
                value = parse_value(name, value, like)
                check_value(name, value, like)
                given[name] = (value, origin)
    techniques = _build_techniques(given, known)
    config = Config(**{n: given[n][0] for n in TRAINER_FIELDS if n in given})
    config.check()
    shape = _shape_of(config, techniques)
    for name, technique in techniques.items():
        technique.check(shape)
        for field in technique.overrides:
            if field in given and given[field][1] != "preset":
                raise ValueError(
                    f"`{field}` was set by the {given[field][1]}, but nothing reads it while {name} is on. "
                    f"Set {name}'s own settings, or turn {name} off."
                )
    values: dict[str, Any] = {n: getattr(config, n) for n in TRAINER_FIELDS}
    for name, technique in known.items():
        values[name] = name in techniques
        if name in techniques:
            own = techniques[name].config
            values |= {f"{name}.{k}": getattr(own, k) for k in settings_of(technique)}
    return Resolved(config, techniques, values, {k: origin for k, (_, origin) in given.items()})


def _build_techniques(
    given: Mapping[str, tuple[Any, str]], known: Mapping[str, type[Technique]]
) -> dict[str, Technique]:
    on: dict[str, Technique] = {}
    own: dict[str, dict[str, Any]] = {}
    for key, (value, _) in given.items():
        owner, dot, inner = key.partition(".")
        if dot:
            own.setdefault(owner, {})[inner] = value
    for name, cls in known.items():
        settings = own.get(name, {})
        if given.get(name, (False, ""))[0]:
            on[name] = cls(cls.Config(**settings))
        elif settings:
            first = f"{name}.{next(iter(settings))}"
            raise ValueError(
                f"`{first}` was set, but {name} is off. Turn it on with --{name}, or drop the setting."
            )
    catalog.check_together(on)
    return {t.name: t for t in catalog.order(on)}


def source_files(resolved: Resolved) -> list[Path]:
    """The files whose code this run executes: every loaded module of the trainer, less the techniques that
    are off."""
    rooms = ("trainer", "techniques", "corpus")
    modules = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] in rooms]
    loaded = {Path(m.__file__).resolve() for m in modules if getattr(m, "__file__", None)}  # type: ignore[arg-type]
    root = catalog.TECHNIQUES_FOLDER.parent
    ours = {p for p in loaded if p.is_relative_to(root)}
    off = {p for name, p in catalog.technique_files().items() if name not in resolved.techniques}
    return sorted((ours - off) | {root / "train_gpt.py"})


def codes(hashes: Mapping[Path, str], resolved: Resolved) -> dict[str, str]:
    """technique -> hash of its file, "" -> hash of all other files: what a technique of a late stage says is
    no part of the stages before it."""
    own = {path.stem: h for path, h in hashes.items() if path.stem in resolved.techniques}
    return {"": digest(sorted(h for path, h in hashes.items() if path.stem not in own)), **own}


def stage_keys(
    resolved: Resolved,
    code: Mapping[str, str],
    data_id: str,
    machine: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, str]:
    """stage -> hash of everything that its result depends on: the stage before it, its own settings (seed and
    budget among them), the code (`codes`), data, and the `machine`: what changes the last bits, or
    what a budget in seconds buys."""
    first_stage = {n: f.metadata["stage"] for n, f in TRAINER_FIELDS.items()}
    keys, upstream = {}, digest([code.get("", ""), data_id, dict(machine)])
    for stage in STAGES:
        own = {n: v for n, v in resolved.values.items() if first_stage.get(n) == stage}
        for name, technique in resolved.techniques.items():
            if technique.stage == stage:
                own[name] = [dataclasses.asdict(technique.config), code.get(name, "")]
        own |= _read_early(resolved, code, stage)
        upstream = keys[stage] = digest([upstream, stage, own])
    return keys


def _read_early(resolved: Resolved, code: Mapping[str, str], stage: str) -> dict[str, Any]:
    """What a stage reads of later ones all the same: a technique at the seam `weight` trains on the bits that
    the export will store, one at `correct`, or that aims at bytes, may weigh the whole submission."""
    seams = {seam for t in resolved.techniques.values() for seam in claims(t)}
    if stage == "train" and "weight" in seams:
        owner = resolved.owner("bits")
        bits = [{role: owner.bits(role) for role in ROLES}, code.get(owner.name, "")] if owner else []
        return {"stored_bits": bits, "stored_from_numel": resolved.config.quantize_min_numel}
    if stage == "quantize" and any(t.aims_at_bytes for t in resolved.techniques.values()):
        script = [resolved.identity(), resolved.beside(), sys.version, _script_makers()]
        return {"submission": dict(code), "script": script}
    if stage == "quantize" and "correct" in seams:
        return {"submission": dict(code), "codec": resolved.identity("pack")}
    return {}


def _script_makers() -> dict[str, str]:
    """file -> hash, of the code that makes the submitted script; empty where there is one file only."""
    files = sorted((catalog.TECHNIQUES_FOLDER.parent / "bundle").glob("*.py"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
