"""Two checkouts, bit for bit: `python -m benchmarks.same --base OTHER_CHECKOUT`, or `--base-commit f28781a`.

A refactoring changes nothing that can be measured, and this says whether it did. The same probe, this file,
runs in both checkouts, side by side on this machine, on the same tokens; it is started by its path, so an old
checkout need not have it. Exit status 1 when anything differs or could not be measured. All of it takes about
three minutes of two cores; `--quick`: under one, without the corpus; `--only losses,studies`: some parts.

    corpus      sha256 of the shards and the tokenizer that `python -m corpus build` makes of a small text
    losses      every line of metrics.jsonl without its clock: all off, six techniques, two presets, two ranks
    artifacts   result.json without clocks and code (sha256 and bytes of the packed model, val_bpb, audit,
                ledger) and resolved settings, of the same runs and of some with quantizers, codecs, scorers
    proposals   every trial of searches on the simulator and of the product's sampler on made-up results
    studies     every studies/*.toml as parsed, its identity and hash; every preset, resolved

Values are exact: floats by their shortest exact spelling, and 1, 1.0 and true are three things. A field of a
dataclass that only one side has counts as equal while it has its default; the table says how many there were.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import importlib.util
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OURS = ("benchmarks", "conformance", "corpus", "search", "techniques", "train_gpt", "trainer")
PASSED = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")  # of the environment
TIMEOUT = 900  # seconds of one probe
MISSING = "(not there)"

# What a run has that no refactoring owes anybody: clocks, code, memory, places.
UNEQUAL = {
    "artifact_bytes",
    "bytes_after",  # of `prune`, with the code
    "bytes_before",
    "code_bytes",
    "code_hash",
    "out_dir",
    "peak_memory_bytes",
    "stage_memory",
    "stage_keys",
    "stage_seconds",
    "untimed",  # of the ledger: reads while no timed clock ran
}
CLOCK = re.compile(r".*_(s|seconds)")
SETTINGS_IN_SECONDS = {"max_wallclock_seconds", "reserve_seconds"}

TINY: dict[str, Any] = {  # a run of seconds on one core
    "num_layers": 4,
    "model_dim": 32,
    "num_heads": 2,
    "num_kv_heads": 1,
    "vocab_size": 320,
    "train_batch_tokens": 256,
    "train_seq_len": 32,
    "micro_batches": 2,
    "iterations": 12,
    "max_wallclock_seconds": 0,
    "warmup_steps": 0,
    "warmdown_iters": 4,
    "quantize_min_numel": 256,
    "val_batch_size": 512,
    "val_loss_every": 5,
    "train_log_every": 1,
    "num_reports": 3,
    "num_threads": 1,
    "device": "cpu",
    "compute_dtype": "float32",
}
SIX: dict[str, Any] = {  # of six seams: attention, embedding in and out, values, optimizer, head
    "xsa": {"last_n": 2},
    "smear_gate": {"mode": "average"},
    "bigram_hash": {"rows": 61, "dim": 16},
    "value_residual": {},
    "muoneq_r": {},
    "softcap": {"mode": "asym"},
}
PACKED: dict[str, Any] = {
    **SIX,
    "ema": {"decay": 0.8},
    "gptq": {"calib_batches": 2, "block_size": 16, "embedding": True},
    "awq_lite": {"group": 16},
    "sensitivity_bits": {"budget_share": 0.75},
    "prune": {"fraction": 0.05},
    "brotli_shuffle": {"stride": 2},
}
SCORED: dict[str, Any] = {
    "depth_recurrence": {"start": 1, "end": 2, "num_loops": 1, "enable_at": 0.5},
    "untie_mlp": {},
    "backout": {"layer": 0},
    "resid_mix_phase": {},
    "mtp": {"num_tokens": 2},
    "swa": {"every": 2, "start_scale": 0.9},
    "muon_details": {"momentum": 0.97, "momentum_warmup_steps": 2, "weight_decay": 0.1},
    "wd_taper": {"start": 0.3, "end_mult": 0.5},
    "coprime_loader": {"shards_start": 1, "shards_end": 1, "grow_batches": 6},
    "score_first_ttt": {"epochs": 1, "lr": 0.01, "chunk_tokens": 512, "stride": 16},
    "zstd": {"level": 22},
}
RANKS: dict[str, Any] = {
    "parallel_muon": {},
    "late_qat": {"threshold": 0.9},
    "shard_order": {"by": "shuffled"},
    "batch_schedule": {"start_frac": 0.5, "full_at": 0.4},
    "seq_schedule": {"halvings": 2, "full_at": 0.5},
    "sliding_window": {"stride": 16},
}
PR549: dict[str, Any] = {
    "partial_rope.dims": 8,
    "xsa.last_n": 2,
    "bigram_hash.rows": 61,
    "bigram_hash.dim": 16,
    "value_embedding.dim": 16,
    "ortho_init.min_side": 8,
    "muon_details.momentum_warmup_steps": 4,
    "ema.decay": 0.5,
    "score_first_ttt.chunk_tokens": 512,
    "score_first_ttt.stride": 16,
    "score_first_ttt.epochs": 1,
}
PR1855: dict[str, Any] = {
    "caseops": False,
    "reserve_seconds": 0.0,
    "partial_rope.dims": 8,
    "xsa.last_n": 2,
    "ortho_init.min_side": 8,
    "muon_details.momentum_warmup_steps": 4,
    "ema.decay": 0.5,
    "depth_recurrence.start": 1,
    "depth_recurrence.end": 2,
    "parallel_residual.start": 3,
    "gptq.calib_batches": 2,
    "gptq.block_size": 16,
    "quant_gate.min_numel": 8,
    "lqer.group": 32,
    "per_group.quality": 4,
    "phased_ttt.rank": 4,
    "phased_ttt.chunk": 16,
    "phased_ttt.lr": 0.01,
    "phased_ttt.prefix_docs": 4,
    "phased_ttt.phases": 2,
    "phased_ttt.global_chunk_tokens": 64,
}


@dataclass(frozen=True)
class Plan:
    """One run of the trainer: its config.json over TINY."""

    settings: Mapping[str, Any]
    ranks: int = 1
    after: str = ""  # the run whose finished stages it finds

    def config(self) -> dict[str, Any]:
        """The whole config.json but for the data."""
        unread = {"warmdown_iters"} if self.settings.get("preset") == "pr1855" else set[str]()
        return {k: v for k, v in TINY.items() if k not in unread} | dict(self.settings)


def rescored(scorer: str, **more: Any) -> Plan:
    """Other late stages on the weights of the run `packed`."""
    late = {k: v for k, v in PACKED.items() if k != "brotli_shuffle"}
    return Plan({**late, scorer: more, "ans": {"row_classes": 4}}, after="packed")


PLANS: dict[str, Plan] = {
    "off": Plan({"preset": "laptop", "vocab_size": 320, **TINY}),
    "six": Plan(SIX),
    "pr549": Plan({"preset": "pr549", **PR549}),
    "pr1855": Plan({"preset": "pr1855", **PR1855}),
    "two ranks": Plan(RANKS, ranks=2),
    "packed": Plan(PACKED),
    "scored": Plan(SCORED),
    "packed, lora_ttt": rescored("lora_ttt", rank=4, lr=0.02, chunk=16),
    "packed, pre_eval_ttt": rescored("pre_eval_ttt", epochs=2, lr=0.005, batch_seqs=4, stride=32),
    "packed, slot": rescored("slot", steps=2, lr=0.02, stride=16, mask="context"),
    "packed, token_tilt": rescored("token_tilt", order=1, beta=1.0, stride=16),
}
LOSSES = ("off", "six", "pr549", "pr1855", "two ranks")

STUDY = """
[study]
name = "same"
preset = "laptop"
[limits]
artifact_bytes = 400_000
train_seconds = 12
eval_seconds = 8
[techniques]
others = "free"
[space]
matrix_lr = {low = 0.01, high = 0.15, log = true}
num_layers = {low = 2, high = 5}
[sampler]
kind = "KIND"
"""


# ---- the comparison ----------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """What differs between two JSON values, and what was let pass."""

    differences: list[tuple[str, str, str]] = field(default_factory=list)  # place, base, current
    ignored: list[str] = field(default_factory=list)  # places of fields at their default, on one side only


def at(place: str, key: str | int) -> str:
    """The place of what lies under `key`: `a.b[3]`."""
    if isinstance(key, int):
        return f"{place}[{key}]"
    return f"{place}.{key}" if place else key


def compare(base: Any, current: Any, defaults: frozenset[str] = frozenset()) -> Comparison:
    """Every difference of two JSON values, in order. `defaults`: places that one side alone may have."""
    found = Comparison()
    _walk(base, current, "", found, defaults)
    return found


def _walk(base: Any, current: Any, place: str, found: Comparison, defaults: frozenset[str]) -> None:
    if isinstance(base, dict) and isinstance(current, dict):
        for key in [*base, *(k for k in current if k not in base)]:
            here = at(place, key)
            if key in base and key in current:
                _walk(base[key], current[key], here, found, defaults)
            elif here in defaults:
                found.ignored.append(here)
            else:
                was = spelt(base[key]) if key in base else MISSING
                now = spelt(current[key]) if key in current else MISSING
                found.differences.append((here, was, now))
    elif isinstance(base, list) and isinstance(current, list):
        for k, (one, other) in enumerate(zip(base, current, strict=False)):
            _walk(one, other, at(place, k), found, defaults)
        if len(base) != len(current):
            found.differences.append((at(place, "length"), str(len(base)), str(len(current))))
    elif spelt(base) != spelt(current):
        found.differences.append((place, spelt(base), spelt(current)))


def spelt(value: Any) -> str:
    """A JSON value, exactly; keys sorted."""
    return json.dumps(value, sort_keys=True)


# ---- in a checkout: the probe ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a probe runs and what it is given."""

    root: Path  # the checkout, also the working directory
    work: Path  # its own folder, outside both checkouts
    data: Path  # the corpus that both train on
    quick: bool


def first_of(*places: str) -> Any:
    """The first of `package.module:name` that there is. Where modules have moved: the one module that defines
    the name, in the package of the last place, else in another of ours. LookupError for none or several."""
    for place in places:
        module, _, name = place.partition(":")
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
                raise  # it is there, and lacks something else
            continue
        if hasattr(found, name):
            return getattr(found, name)
    module, _, name = places[-1].partition(":")
    own = module.partition(".")[0]
    for package in (own, *(p for p in OURS if p != own)):
        where = defining(package, name)
        if len(where) > 1:
            raise LookupError(
                f"`{name}` must be defined once, but is in {', '.join(where)}. Name its module."
            )
        if where:
            return getattr(importlib.import_module(where[0]), name)
    raise LookupError(f"One of {', '.join(places)} must be there, and no module of ours defines `{name}`.")


def defining(package: str, name: str) -> list[str]:
    """The modules of a package whose text defines `name` at the top level."""
    starts = re.compile(rf"^(?:def|class) {re.escape(name)}\b", re.MULTILINE)
    spec = importlib.util.find_spec(package)
    found: list[str] = []
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).rglob("*.py")):
            if starts.search(path.read_text(encoding="utf-8")):
                parts = path.relative_to(folder).with_suffix("").parts
                found.append(".".join([package, *(p for p in parts if p != "__init__")]))
    return found


def check_imports(root: Path) -> None:
    """RuntimeError when a module of the project came from elsewhere than the checkout."""
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name.partition(".")[0] in OURS and path and root not in Path(path).resolve().parents:
            raise RuntimeError(f"{name} must come from {root}, but came from {path}.")


def without_clocks(value: Any) -> Any:
    """A result with everything left out that may differ between two runs of the same code."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in UNEQUAL}
        named = {k: v for k, v in kept.items() if not CLOCK.fullmatch(k) or k in SETTINGS_IN_SECONDS}
        return {k: without_clocks(v) for k, v in named.items()}
    return [without_clocks(v) for v in value] if isinstance(value, list) else value


def trained(name: str, place: Place) -> Path:
    """The folder of a run; made when it is not there. RuntimeError where the trainer refused."""
    plan, out = PLANS[name], place.work / "runs" / name.replace(", ", "-").replace(" ", "-")
    if (out / "seen").exists():
        return out
    if plan.after:
        earlier = trained(plan.after, place)
        out.mkdir(parents=True)
        for path in earlier.iterdir():
            if path.name.startswith(("weights", "stage_average")):
                (out / path.name).write_bytes(path.read_bytes())
    out.mkdir(parents=True, exist_ok=True)
    data = {"data_path": str(place.data / "datasets" / "tiny_sp320")}
    data["tokenizer_path"] = str(place.data / "tokenizers" / "tiny_320_bpe.model")
    config = place.work / f"{out.name}.json"
    config.write_text(json.dumps(plan.config() | data), encoding="utf-8")
    command = [sys.executable]
    if plan.ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={plan.ranks}"]
    command += ["train_gpt.py", str(config), "--out_dir", str(out)]
    done = subprocess.run(command, cwd=place.root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(
            f"train_gpt.py ended with {done.returncode}: {(done.stderr or done.stdout)[-600:]}"
        )
    (out / "seen").touch()
    return out


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def corpus_of(place: Place) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The corpus that this checkout builds."""

    def digests() -> dict[str, str]:
        made = build_corpus(place.root, place.work / "corpus")
        files = sorted(p for p in made.rglob("*") if p.suffix in (".bin", ".model"))
        return {str(p.relative_to(made)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    yield "shards and tokenizer", digests


def losses_of(place: Place) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Training, validation and report lines of each run."""

    def lines(name: str) -> list[Any]:
        text = (trained(name, place) / "metrics.jsonl").read_text(encoding="utf-8")
        return [without_clocks(json.loads(line)) for line in text.splitlines()]

    for name in LOSSES[:2] if place.quick else LOSSES:
        yield name, lambda name=name: lines(name)


def artifacts_of(place: Place) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The packed model's digest, the result and the settings of each run."""

    def facts(name: str) -> dict[str, Any]:
        out = trained(name, place)
        found = {
            "artifact_sha256": hashlib.sha256((out / "artifact.bin").read_bytes()).hexdigest(),
            "result": without_clocks(read_json(out / "result.json")),
            "resolved": without_clocks(read_json(out / "resolved.json")),
        }
        if PLANS[name].after:
            assert "train" in found["result"]["reused"], "the kept weights were not taken"
        return found

    for name in LOSSES[:2] if place.quick else PLANS:
        yield name, lambda name=name: facts(name)


def proposals_of(place: Place) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every trial of some searches."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore")
    trials = 20 if place.quick else 60

    def simulated(method: str, variant: str, workers: int) -> list[Any]:
        search = first_of("benchmarks.search_efficiency:Search")(method, variant, 3, workers=workers)
        search.run(trials)
        return [told(t) for t in search.study.get_trials(deepcopy=False)]

    for method in ("structured", "best_tpe") if place.quick else ("structured", "best_tpe", "tpe", "staged"):
        for workers in (1, 8):
            title = f"simulator, {method}, workers {workers}"
            yield title, lambda method=method, workers=workers: simulated(method, "base", workers)
    for variant in () if place.quick else ("three_way", "rank_flip"):
        title = f"simulator {variant}, structured, workers 8"
        yield title, lambda variant=variant: simulated("structured", variant, 8)
    for kind in ("structured", "tpe"):
        for workers in (1, 8):
            title = f"study, {kind}, workers {workers}"
            yield title, lambda kind=kind, workers=workers: sampled(place, kind, workers, trials // 2)


def told(trial: Any) -> dict[str, Any]:
    """What a trial tried and what it was told."""
    return {
        "number": trial.number,
        "state": trial.state.name,
        "params": dict(trial.params),
        "values": trial.values,
        "reports": {str(k): v for k, v in trial.intermediate_values.items()},
        "constraints": dict(trial.constraints),
        "user_attrs": {k: v for k, v in trial.user_attrs.items() if not CLOCK.fullmatch(k)},
    }


def sampled(place: Place, kind: str, workers: int, trials: int) -> list[Any]:
    """The product's sampler and preflight on a study over every technique; a hash makes up the results."""
    import optuna

    load_study = first_of("search.study.load:load_study", "search.study:load_study")
    build_space = first_of("search.space:build_space")
    set_all, violations = first_of("search.constraints:set_all"), first_of("search.constraints:violations")
    known = first_of("techniques.catalog:metadata")()
    path = place.work / f"same-{kind}.toml"
    path.write_text(STUDY.replace("KIND", kind), encoding="utf-8")
    study = load_study(path, known)
    space = build_space(study, known)
    preflight = first_of("search.preflight:Preflight")(study)
    preflight.code_bytes = lambda resolved: 100_000  # code weighs the same on both sides
    sampler = first_of("search.sampler:CaddieSampler")(space, preflight, seed=5)
    search, waiting = optuna.create_study(sampler=sampler), []
    for asked in range(trials + workers):
        if len(waiting) == workers or asked >= trials:
            trial, params = waiting.pop(0)
            result = made_up(params)
            for name, figure in result.items():
                trial.set_user_attr(name, figure)
            set_all(trial, violations(result, study.limits))
            search.tell(trial, result["train_seconds"] / 10)
        if asked < trials:
            trial = search.ask()
            waiting.append((trial, space.repaired(space.suggest(trial))))
    return [told(t) for t in search.get_trials(deepcopy=False)]


def made_up(params: Mapping[str, Any]) -> dict[str, Any]:
    """A result that depends on the parameters alone."""
    share = int(hashlib.sha256(spelt(dict(params)).encode()).hexdigest()[:8], 16) / 2**32
    seconds = 10.0 + abs(math.log(params["matrix_lr"] / 0.04)) + share
    size = 180_000 + 60_000 * params["num_layers"] + round(20_000 * share)
    figures = {"artifact_bytes": size, "code_bytes": 100_000, "steps": 100}
    return {"status": "finished", **figures, "train_seconds": seconds, "eval_seconds": 4.0 + 3.0 * share}


def studies_of(place: Place) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every study file as the search reads it, and every preset as the trainer does."""
    load_study = first_of("search.study.load:load_study", "search.study:load_study")
    identity_of = first_of("search.study.model:study_identity", "search.study:study_identity")
    hash_of = first_of("search.study.model:study_hash", "search.study:study_hash")
    resolve, read_preset = first_of("techniques.config:resolve"), first_of("techniques.config:read_preset")
    known = first_of("techniques.catalog:metadata")()

    def parsed(path: Path) -> dict[str, Any]:
        study, defaults = load_study(path, known), set[str]()
        tree = canonical(study, "study", defaults, str(place.root))
        identity = canonical(identity_of(study), "identity", defaults, str(place.root))
        return {"study": tree, "identity": identity, "hash": hash_of(study), "defaults": sorted(defaults)}

    def preset(path: Path) -> dict[str, Any]:
        run = resolve({"preset": read_preset(path.stem)}, known)
        return {
            "values": run.values,
            "origins": run.origins,
            "hash": run.hash(),
            "chain": list(run.techniques),
        }

    for path in sorted(Path("studies").glob("*.toml")):
        yield path.name, lambda path=path: parsed(path)
    for path in sorted(Path("studies", "presets").glob("*.toml")):
        yield f"preset {path.stem}", lambda path=path: preset(path)


def canonical(value: Any, place: str, defaults: set[str], root: str) -> Any:
    """A value as JSON: dataclasses as their fields, sets sorted, the checkout's folder left out of paths.
    `defaults` is told the places of fields that have their default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            plain = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            if plain is not dataclasses.MISSING and plain == getattr(value, f.name):
                defaults.add(at(place, f.name))
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): canonical(v, at(place, str(k)), defaults, root) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(value)
    if isinstance(value, list | tuple):
        return [canonical(v, at(place, k), defaults, root) for k, v in enumerate(value)]
    if isinstance(value, Path):
        value = str(value)
    return value.replace(root + os.sep, "") if isinstance(value, str) else value


PARTS: dict[str, Callable[[Place], Iterator[tuple[str, Callable[[], Any]]]]] = {
    "studies": studies_of,
    "proposals": proposals_of,
    "corpus": corpus_of,
    "losses": losses_of,
    "artifacts": artifacts_of,
}
QUICK = ("studies", "proposals", "losses", "artifacts")


def probe(part: str, place: Place) -> dict[str, Any]:
    """title -> {"found": …} or {"error": why}, of one part in this checkout."""
    found: dict[str, Any] = {}
    for title, measure in PARTS[part](place):
        try:
            found[title] = {"found": measure()}
        except (
            RuntimeError,
            ValueError,
            LookupError,
            AttributeError,
            TypeError,
            OSError,
            AssertionError,
        ) as error:
            found[title] = {"error": f"{type(error).__name__}: {error}"}
    check_imports(place.root)
    return found


# ---- both checkouts ----------------------------------------------------------------------------------------


def build_corpus(root: Path, folder: Path) -> Path:
    """A corpus of generated text under `folder`, built by the checkout `root`: its data folder."""
    text, rng = folder / "text", random.Random(7)
    text.mkdir(parents=True)
    words = (
        "the caddie carries every club and names one for each lie while a player looks at the wind".split()
    )
    for k in range(300):
        drawn = (rng.choice(words) + str(rng.randrange(50)) * (rng.random() < 0.1) for _ in range(60))
        (text / f"{k:04d}.txt").write_text(" ".join(drawn), encoding="utf-8")
    command = [sys.executable, "-m", "corpus", "build", "--text", str(text), "--to", str(folder / "data")]
    command += ["--name", "tiny", "--vocab-size", "320", "--val-docs", "30"]
    done = subprocess.run(
        command, cwd=root, env=environment(root), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"The corpus could not be built in {root}: {(done.stderr or done.stdout)[-600:]}")
    return folder / "data"


def environment(root: Path) -> dict[str, str]:
    """Nothing of the user's settings; the checkout's modules; one thread; no files beside the sources."""
    kept = {k: os.environ[k] for k in PASSED if k in os.environ}
    ours = {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return kept | ours | {"PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""}


def start(part: str, place: Place) -> subprocess.Popen[str]:
    """The probe of a part in a checkout."""
    command = [
        sys.executable,
        "-P",
        str(Path(__file__).resolve()),
        "--probe",
        part,
        "--work",
        str(place.work),
    ]
    command += ["--data", str(place.data), *(["--quick"] if place.quick else [])]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=place.root, env=environment(place.root), stdout=pipe, stderr=pipe, text=True
    )


def answers(part: str, places: Mapping[str, Place]) -> list[dict[str, Any]]:
    """What the probe of a part found on each side, both run at once. A probe that broke off has one error."""
    running = {side: start(part, place) for side, place in places.items()}
    found: list[dict[str, Any]] = []
    for side, process in running.items():
        try:
            _, told_err = process.communicate(timeout=TIMEOUT)
        finally:
            if process.poll() is None:  # out of time, or somebody pressed Ctrl-C
                process.kill()
        path = places[side].work / f"{part}.json"
        whole = process.returncode == 0 and path.exists()
        lines = told_err.strip().splitlines() or [f"exit status {process.returncode}"]
        found.append(read_json(path) if whole else {"probe": {"error": lines[-1]}})
    return found


def rows_of(base: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[tuple[str, bool, str]]:
    """(what, whether it is equal, the first difference or what was ignored) of one part."""
    for title in [*base, *(t for t in current if t not in base)]:
        one, other = base.get(title, {"error": MISSING}), current.get(title, {"error": MISSING})
        errors = [f"{side}: {e['error']}" for side, e in (("base", one), ("current", other)) if "error" in e]
        if errors:
            yield title, False, " ".join("; ".join(errors).split())
            continue
        sides, defaults = [one["found"], other["found"]], set[str]()
        if all(isinstance(side, dict) and "defaults" in side for side in sides):
            defaults = {place for side in sides for place in side["defaults"]}
            sides = [{k: v for k, v in side.items() if k != "defaults"} for side in sides]
        met = compare(*sides, frozenset(defaults))
        note = f"{len(met.ignored)} fields at their default on one side only" if met.ignored else ""
        if met.differences:
            where, was, now = met.differences[0]
            more = f" (and {len(met.differences) - 1} more)" if len(met.differences) > 1 else ""
            note = f"{where}: {shortened(was)} -> {shortened(now)}{more}"
        yield title, not met.differences, note


def shortened(text: str, most: int = 100) -> str:
    return text if len(text) <= most else text[:most] + "…"


@contextmanager
def checkout_of(commit: str) -> Iterator[Path]:
    """A worktree of a commit, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="same-base-") as folder:
        path = Path(folder).resolve() / "base"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(path), commit], check=True)
        try:
            yield path
        finally:
            subprocess.run([*git, "remove", "--force", str(path)], check=True)


def compare_checkouts(base: Path, current: Path, parts: list[str], *, quick: bool) -> bool:
    """Prints the table; whether everything is equal."""
    equal = True
    with tempfile.TemporaryDirectory(prefix="same-") as folder:
        work = Path(folder).resolve()
        needs_data = bool({"losses", "artifacts"} & set(parts))
        data = build_corpus(base, work / "shared") if needs_data else work
        places: dict[str, Place] = {}
        for side, root in (("base", base), ("current", current)):
            (work / side).mkdir()
            places[side] = Place(root, work / side, data, quick)
        for part in parts:
            rows = list(rows_of(*answers(part, places))) or [("nothing", False, "no case was found")]
            for what, same, note in rows:
                verdict = "equal  " if same else "DIFFERS"
                print(f"{part + ' | ' + what:52} | {verdict}{' | ' if note else ''}{note}", flush=True)
                equal = equal and same
    return equal


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; --probe, --work and --data are for the probe that this file starts itself."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", type=Path, help="the checkout to compare with")
    parser.add_argument(
        "--base-commit", default="", help="or a commit, of which a worktree is made for the time"
    )
    parser.add_argument(
        "--current", type=Path, default=ROOT, help="the checkout to judge; by default this one"
    )
    parser.add_argument("--only", default="", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="few runs and trials, in under a minute")
    for internal in ("--probe", "--work", "--data"):
        parser.add_argument(internal, default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = set(filter(None, options.only.split(","))) - PARTS.keys()
    if unknown:
        parser.error(f"Unknown part {', '.join(sorted(unknown))}. There are {', '.join(PARTS)}.")
    if not options.probe and bool(options.base) == bool(options.base_commit):
        parser.error("Give one of --base and --base-commit.")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 all equal, 1 something differs."""
    options = parse(arguments)
    if options.probe:
        place = Place(Path.cwd().resolve(), Path(options.work), Path(options.data), options.quick)
        found = probe(options.probe, place)
        (place.work / f"{options.probe}.json").write_text(json.dumps(found), encoding="utf-8")
        return 0
    asked = set(filter(None, options.only.split(","))) or set(QUICK if options.quick else PARTS)
    parts = [part for part in PARTS if part in asked]
    if options.base:
        equal = compare_checkouts(
            options.base.resolve(), options.current.resolve(), parts, quick=options.quick
        )
    else:
        with checkout_of(options.base_commit) as base:
            equal = compare_checkouts(base, options.current.resolve(), parts, quick=options.quick)
    print("all equal" if equal else "something DIFFERS")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
