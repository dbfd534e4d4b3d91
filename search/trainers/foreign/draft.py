"""draft(scan, out) -> TOML: a first study of a scanned script, which loads and runs at once.

Ranges are guesses from names and defaults: rates and weight decays logarithmic, a factor 4 around; momenta by
their distance from 1; counts around their default; 0/1 switches as gates over what has their prefix. Paths,
seeds, budgets and shapes that must divide stay fixed. Every line names the script's line that it comes from.
"""

import itertools
import json
import math
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from readers.log_reader import EXACT
from readers.scan import Read, Scan, scan
from search.common.console import counted
from search.common.machine import gpu_numbers
from search.study.foreign import VARIABLE, Value
from search.study.load import load_study, read_study
from search.trainers.foreign.draws import Narrowing, narrowings

SWITCH = re.compile(r"^(?:USE|ENABLE|WITH)_(\w+)$|^(\w+?)_(?:ENABLED|ENABLE|ON)$")
# What stays fixed: it names the run, its data, its budget or its evaluation, or must fit something else.
# Whole words: LOG_DIR is a path, LOGIT_SOFTCAP is none.
FIXED = re.compile(
    r"(?:^|_)(?:SEEDS?|PATHS?|DIR|FILES?|RUN_ID|TOKENIZER|DATA|DATASET|VOCAB|LOGS?|VAL|EVERY|PATTERNS?|ITERATIONS|"
    r"WALLCLOCK|WARMUP_STEPS|NUM_HEADS|KV_HEADS|N_HEADS?|MODEL_DIM|SEQ_LEN|BATCH|DEVICE|DTYPE|COMPILE|PRECISION|NAME|"
    r"ONLY|SKIP|STOP|EXIT|DEBUG|TEST|DRY|SAVE|LOAD|RESUME|CKPT|CHECKPOINT|TIED?(?!\w*_(?:LR|STD)$)|LIMIT|BYTES|WANDB|TRACKIO|TENSORBOARD|"
    r"PROJECT|ENTITY|TOKENS?|KEY|SECRET|PORT|WORKERS|ACCUM(?:ULATION)?|ID|TAG|TARGET|METRIC|INTERVAL|N_EMBD|D_MODEL|"
    r"HIDDEN_(?:SIZE|DIM)|BLOCK_SIZE|CONTEXT|(?:MAX|EVAL|NUM|DECAY|WARMUP)_ITERS|(?:MAX|NUM|TRAIN|TOTAL)_STEPS|STEP)"
    r"(?=_|$)|MAX_.*_SECONDS|^(?:(?:N|NUM|MAX|TOTAL)_)?(?:TRAIN(?:ING)?_)?(?:STEPS|ITERS|EPOCHS|HEADS)$"
)
# switches of an evaluation: off, the baseline's score is not printed
EVALUATION = re.compile(r"(?:^|_)(?:EVAL|TTT|SLIDING|SLOT|NGRAM|PPM|ROUNDTRIP|QUANT\w*|GPTQ|EXPORT)(?=_|$)")
EVEN = re.compile(r"(?:^|_)DIMS?(?=_|$)")  # of what is halved, as rotary dimensions are
INDEX = re.compile(r"(?:^|_)(?:START|END|LAST|(?<!N_)LAYER)(?=_|$)")  # of a layer: never above its default
MOST = {"BITS": 8, "ZSTD": 22, "LGWIN": 24, "BROTLI": 11, "QUALITY": 11, "LEVEL": 9, "PRESET": 9}  # by word
STEPS = re.compile(  # the number of steps of a run
    r"^(?:(?:NUM|MAX|TRAIN|TOTAL|N)_(?:TRAIN(?:ING)?_)?)?(?:ITERATIONS|ITERS|STEPS)$|^NUM_SCHEDULED_ITERATIONS$"
)
TORCHRUN = "{python} -m torch.distributed.run --standalone --nproc_per_node={gpus} {script}"
RATE = re.compile(r"(^|_)(LR|WD|LEARNING_RATE|WEIGHT_DECAY|EPS|STD|LAMBDA|DAMP\w*)(_|$)")
NEAR_ONE = re.compile(r"MOMENTUM|BETA|DECAY")
SHARE = re.compile(r"FRAC|RATIO|PCT|DROPOUT|THRESHOLD|(^|_)PROB")
LAYERS = re.compile(r"LAYERS|DEPTH|(?:^|_)N_LAYER$")
OPPOSITES = {"true": "false", "yes": "no", "on": "off", "True": "False"}
ROUNDS = 4  # of taking out what the script's checks forbid
FOLD = 4.0  # a logarithmic range reaches this far to both sides
HEAD = """\
# Drafted from {script} without running it. Ranges and limits are guesses: read them first;
# docs/any_trainer.md says what each entry means. The value of [fixed] is what the script has by default.
[study]
name = {name}
question = "Which settings of {script} lower {score} within bytes and seconds?"
num_reports = 8

[limits]
artifact_bytes = 16_000_000
train_seconds = 600
eval_seconds = 600

[trainer]
script = {path}
command = {command}
"""


def draft(found: Scan, out: Path) -> str:
    """The study file's text; `out` is where it will lie (the script's path is relative to it). What the
    script's own checks forbid is taken out of the space."""
    narrowed = dict[str, Narrowing]()
    for _ in range(ROUNDS):
        text = _composed(found, out, narrowed)
        foreign = read_study(text, out, {}).foreign
        assert foreign is not None
        more = narrowings(found, foreign)
        if not more:
            break
        narrowed |= more
    return _composed(found, out, narrowed)


def _composed(found: Scan, out: Path, narrowed: Mapping[str, Narrowing]) -> str:
    path = Path(os.path.relpath(found.path.resolve(), out.resolve().parent)).as_posix()
    run = TORCHRUN if found.distributed and gpu_numbers() else "{python} {script}"
    if found.root is not None:
        run = run.replace("{script}", "-m {module}")
    stem = re.sub(r"[^\w.+-]", "_", out.stem).lstrip(".+-") or "theirs"
    score = "val_loss (nats per token)" if found.patterns.in_nats else "val_bpb"
    told = {"script": found.path.name, "name": json.dumps(stem), "path": _text(path), "score": score}
    head = HEAD.format(**told, command=_text(run))
    lines = [head.rstrip()]
    if found.distributed and run != TORCHRUN:
        lines.append(f"# it can run on several GPUs: command = {_text(TORCHRUN)}")
    if found.root is not None:
        lines.append(
            f"folder = {_text(os.path.relpath(found.root, out.resolve().parent))}  # it imports from there"
        )
    reading = _reading(found)
    named = {n for line in reading if (n := line.partition(" = ")[2].strip('"')) in found.reads}
    fixed, space = _split(found, named, narrowed)
    lines += reading
    set_here = {line.partition(" = ")[0] for line in (*fixed, *space)}
    for table in ("arguments", "constants"):
        bound = [_binding(r) for r in found.reads.values() if r.table == table and r.name in set_here]
        lines += ["", f"[{table}]", *bound] if bound else []
    left = next((r for r in found.reads.values() if r.where and f"# {r.name} =" in "\n".join(fixed)), None)
    hint = f"# left to the script; to set one, take it in here and bind it in [{left.table}]" if left else ""
    lines += ["", "[fixed]", *([f"{hint}, {_binding(left)}"] if left else []), *fixed, "", "[space]", *space]
    if found.odd:
        lines += ["", "# Not understood, and left to the script:", *(f"#   {odd}" for odd in found.odd)]
    return "\n".join(lines) + "\n"


def write(script: Path, out: Path | None) -> str:
    """Writes the draft to `out`, if given; returns what to print. ValueError if it could not be loaded."""
    found = scan(script)
    text = draft(found, out or Path("theirs.toml"))
    if out is None:
        return text
    if out.exists():
        raise ValueError(f"A draft overwrites nothing, but {out} exists. Give another --out, or remove it.")
    out.write_text(text, encoding="utf-8")
    try:
        foreign = load_study(out, {}).foreign
    except ValueError:
        out.unlink()  # a draft that cannot be loaded is none, and must not stand in the way of the next
        raise
    assert foreign is not None  # a draft has a [trainer]
    variables = foreign.variables
    gates = sum(v.gate for v in variables.values())
    told = [
        f"{out}: {counted(len(found.reads), 'variable')} of {script.name}; {len(variables)} to search "
        f"({counted(gates, 'gate')}), {len(found.reads) - len(variables)} fixed",
        *(f"  not understood: {odd}" for odd in found.odd),
        _score_line(found),
    ]
    if not variables:
        told.append("  nothing to search: no setting that is read has a range that could be guessed")
    if not found.sizes:
        weighed = ": only the script is weighed" if found.patterns.score else ", or no run has bytes"
        told.append(f"  no size line: name what counts in [trainer] files{weighed}")
    first = "Read it, then" if variables else "Name what to search under [space], then"
    told.append(f"{first}: python search.py --study {shlex.quote(str(out))} --trials 20")
    return "\n".join(told) + "\n"


def _reading(found: Scan) -> list[str]:
    reads, lines = found.reads, list[str]()
    for key, names in (
        ("seed", ("SEED", "RANDOM_SEED")),
        ("wallclock", ("MAX_WALLCLOCK_SECONDS",)),
        ("warmdown", ("WARMDOWN_ITERS", "WARMDOWN_STEPS")),
        ("warmdown_frac", ("WARMDOWN_FRAC",)),
    ):
        name = next((r.name for n in names for r in reads.values() if r.upper == n and r.default), "")
        if name and not (key == "warmdown_frac" and any(line.startswith("warmdown =") for line in lines)):
            lines.append(f"{key} = {_text(name)}")
    if found.patterns.score:
        return lines + _by_patterns(found)
    rule = score_rule(found)
    printed = ", ".join(f"{label} (line {line})" for label, line in found.labels.items())
    lines.append("# a run's score is the last that it prints; to name it instead, the one that counts first:")
    lines.append(f"# score = [{', '.join(map(_text, rule))}]")
    lines.append(f"# score lines in the script: {printed or 'none found'}")
    if not found.sizes:
        lines.append(
            f'# no size line was found: name what counts, files = ["final_model.ptz", {_text(_named(found))}]'
        )
    codecs = [codec for codec in found.sizes if codec]
    if len(codecs) > 1:
        lines.append(f"# sizes are printed for {', '.join(codecs)}; CHECK which one counts")
        lines.append(f"size = {_text(codecs[-1])}")
    return lines


def _by_patterns(found: Scan) -> list[str]:
    """The entries of a log that is not the challenge's."""
    patterns = found.patterns
    lines = [
        f"# its own log lines; the last one is the score{', a loss in nats' if patterns.in_nats else ''}"
    ]
    for key, many in (("score_pattern", patterns.score), ("progress_pattern", patterns.progress)):
        if many:
            lines += [f"{key} = [", *(f"    '{one}'," for one in many), "]"]
    steps = [
        r.name
        for r in found.reads.values()
        if STEPS.match(r.upper) and r.kind == "int" and (r.default or 0) > 0
    ]
    if steps and not patterns.has_total:
        lines.append(f"steps = {_text(steps[0])}")
    if not found.sizes:
        lines.append("# no size line was found: the script alone is weighed. Add the model's file")
        lines.append(f"files = [{_text(_named(found))}]")
    return lines


def _named(found: Scan) -> str:
    root = found.root or found.path.resolve().parent
    return found.path.resolve().relative_to(root).as_posix()


def _score_line(found: Scan) -> str:
    if found.patterns.score:
        what = "a loss in nats per token" if found.patterns.in_nats else "bits per byte"
        return f"  score: {what}, by the script's own lines (score_pattern); the last that a run prints"
    has = ", ".join(score_rule(found)) or "none that a scan can name"
    return f"  score: the last that a run prints (the script has: {has})"


def _binding(read: Read) -> str:
    return f"{read.name} = " + (
        f"[{_text(read.where)}, {_text(read.no_flag)}]" if read.no_flag else _text(read.where)
    )


def score_rule(found: Scan) -> list[str]:
    """Labels, the one that stands last in the script first; `X_exact` for `X`."""
    exact = [k for k in found.labels if k.endswith(EXACT) or k + EXACT not in found.labels]
    return sorted(exact, key=lambda label: -found.labels[label])


def _split(found: Scan, named: set[str], narrowed: Mapping[str, Narrowing]) -> tuple[list[str], list[str]]:
    """(lines of [fixed], lines of [space]); `named` are those whose value [trainer] needs."""
    still = {
        name for name, narrowing in narrowed.items() if not narrowing.values and narrowing.between is None
    }
    gates = {n: stem for n, r in found.reads.items() if n not in still and (stem := _stem(r, found))}
    highest = [
        read.default for read in found.reads.values() if INDEX.search(read.upper) and read.kind == "int"
    ]
    fixed, space = list[str](), list[str]()
    for name, read in sorted(found.reads.items(), key=lambda item: item[1].line):
        at = f"  # line {read.line}, default {read.default!r}" + (f"; {read.note}" if read.note else "")
        at += f"; {narrowed[name].reason}" if name in narrowed else ""
        if not VARIABLE.fullmatch(name):
            fixed.append(f"# {name!r}: no name that a study can set{at}")
        elif name in gates:
            off = OPPOSITES.get(read.on, "0") if read.off == "0" else read.off
            texts = "" if read.on == "1" else f", on = {_text(read.on)}"
            texts += ", unset = true" if off is None else f", off = {_text(off)}" if off != "0" else ""
            space.append(f"{name} = {{ gate = true{texts}{_when(name, gates)} }}{at}")
        elif read.default is None:
            reason = read.note or "no default: set it if the script needs it"
            fixed.append(f"# {name} =  # line {read.line}, {reason}")
        elif name in narrowed and name not in still:
            space.append(f"{name} = {{ {_these(narrowed[name])}{_when(name, gates)} }}{at}")
        elif name not in still and read.choices and not FIXED.search(read.upper) and len({*read.choices}) > 1:
            space.append(f"{name} = {{ choices = {_choices(read.choices)}{_when(name, gates)} }}{at}")
        elif not {name, name.lower()} & (still | found.divided) and (
            spec := _range(read, found, bool(highest))
        ):
            space.append(f"{name} = {{ {spec}{_when(name, gates)} }}{at}")
        else:
            value = read.default if read.kind != "bool" else read.on if read.default else read.off or "0"
            value = bool(read.default) if read.kind == "bool" and _typed(read) else value
            left = "# " if read.table and name not in named else ""  # the script has it anyway
            fixed.append(f"{left}{name} = {_value(value)}{at}")
    return fixed, space


def _these(narrowing: Narrowing) -> str:
    """What is left of a setting as TOML: a range, with a step where its values have one, or choices."""
    if narrowing.between is not None:
        low, high = narrowing.between
        return f"low = {low!r}, high = {high!r}" + (", log = true" if narrowing.log else "")
    values = narrowing.values
    numbers = [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
    steps = {b - a for a, b in itertools.pairwise(numbers)}
    if len(numbers) < len(values) or len(steps) != 1 or len(values) < 3:
        return f"choices = {_choices(values)}"
    step = steps.pop()
    return f"low = {numbers[0]}, high = {numbers[-1]}" + (f", step = {step}" if step > 1 else "")


def _typed(read: Read) -> bool:
    """Whether a switch takes true and false, not texts: a constant, a flag."""
    return read.table == "constants" or (read.table == "arguments" and "{value}" not in read.where)


def _stem(read: Read, found: Scan) -> str:
    """What the settings of a switch begin with; "" when the variable is none, or one that decides whether
    there is a score."""
    if FIXED.search(read.upper) or read.name.lower() in found.ends:
        return ""
    if read.table == "arguments" and not read.where:  # a flag that only switches off
        return ""
    if EVALUATION.search(read.upper) and read.default in (True, 1, "1"):
        return ""
    named = SWITCH.match(read.upper)
    switch = read.kind == "bool" or (
        named is not None and read.default in (0, 1, "0", "1") and read.kind != "float"
    )
    if not switch:
        return ""
    return (named[1] or named[2] if named else read.upper) + "_"


def _when(name: str, gates: dict[str, str]) -> str:
    """The condition of a variable: the switch with the longest matching prefix."""
    owners = [gate for gate, stem in gates.items() if gate != name and name.upper().startswith(stem)]
    owner = max(owners, key=lambda gate: len(gates[gate]), default="")
    circular = owner in gates and name in gates and owner.upper().startswith(gates[name])
    return f', when = "{owner}"' if owner and not circular else ""


def _range(read: Read, found: Scan, layered: bool) -> str:
    """A range around the default, as TOML; "" where none is to be guessed."""
    value = read.default
    if FIXED.search(read.upper) or read.kind == "str" or isinstance(value, bool) or not math.isfinite(value):
        return ""
    if read.kind == "float":
        return _real(read.upper, float(value))
    words = {*read.upper.split("_")}
    most = next((top for word, top in MOST.items() if word in words), math.inf)
    if INDEX.search(read.upper):
        most = value
    least = _other_end(read, found)
    if least is not None:
        return (
            f"low = {least}, high = {value}"
            if "END" in words
            else f"low = {max(1, value // 2)}, high = {least}"
        )
    return _whole(read.upper, int(value), most, layered)


def _other_end(read: Read, found: Scan) -> int | None:
    """Where X_START's range ends and X_END's begins: half way; None where it is neither."""
    for mine, other in (("START", "END"), ("END", "START")):
        named = re.sub(rf"(^|_){mine}(?=_|$)", rf"\1{other}", read.upper)
        twin = next((r for r in found.reads.values() if r.upper == named), None)
        if twin and twin.name != read.name and twin.kind == "int" and isinstance(twin.default, int):
            low, high = sorted((int(read.default), twin.default))
            middle = (low + high) // 2
            return middle if max(1, low // 2) < middle < high else None
    return None


def _whole(name: str, value: int, most: float, layered: bool) -> str:
    if value < 1 or value > most:
        return ""
    if LAYERS.search(name) and value > 4:
        return f"low = {value - (0 if layered else 2)}, high = {value + 2}"
    if EVEN.search(name):
        choices = [n for n in (value // 2, value, value * 2) if n % 2 == 0]
        return f"choices = {choices}" if len(choices) > 1 else ""
    if value * 2 > most:
        low = max(1, value // 2)
        return f"low = {low}, high = {int(most)}" if low < most else ""
    if value >= 32 and value & (value - 1) == 0:
        return f"choices = [{value // 2}, {value}, {value * 2}]"
    if value > 32:
        return f"low = {value // 2}, high = {value * 2}, log = true"
    return f"low = {max(1, value // 2)}, high = {value * 2}"


def _real(name: str, value: float) -> str:
    if not 1e-30 < value < 1e30:  # nothing, or a number that only says "never" or "always"
        return ""
    if NEAR_ONE.search(name) and 0.5 < value < 1.0 and not RATE.search(name):
        return f"low = {_short(max(0.0, 1 - 3 * (1 - value)))}, high = {_short(1 - (1 - value) / 3)}"
    if SHARE.search(name) and value <= 1.0:
        return f"low = {_short(value / 2)}, high = {_short(min(1.0, value * 2))}"
    if RATE.search(name):
        return f"low = {_short(value / FOLD)}, high = {_short(value * FOLD)}, log = true"
    return f"low = {_short(value / 2)}, high = {_short(value * 2)}, log = true"


def _short(value: float) -> str:
    text = f"{value:.4g}"
    return text if any(c in text for c in ".en") else text + ".0"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _choices(values: tuple[Value, ...]) -> str:
    return f"[{', '.join(map(_value, values))}]"


def _value(value: str | int | float) -> str:
    if isinstance(value, str | bool):
        return _text(value) if isinstance(value, str) else str(value).lower()
    return repr(value) if not isinstance(value, float) or math.isfinite(value) else f'"{value}"'
