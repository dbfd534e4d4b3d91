"""A configuration as the smallest one-file script that trains, packs and scores it: what is submitted.

The one file of one_file.py with stand-ins for what only the lab needs (parsing, stages that resume, audit,
ledger, checks of data), then the passes of passes.py. It takes no command line; DATA_PATH, TOKENIZER_PATH
and SEED of the environment are heard. Packed, it is a Python source in latin-1 that unpacks and runs itself.

The passes take seconds and see no value, only what tests of values decide: a template is made once for all
configurations of the same techniques and decisions, kept in a folder, and filled in (0.1 s).
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import gc
import hashlib
import json
import lzma
import os
import re
import shutil
import sys
import zlib
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle import names, passes
from bundle.inline import DEFINITIONS, Piece, import_lines, piece_of, program, reached
from bundle.one_file import CATALOG, ROOT, SCRIPT, check_free, dictionary, write
from bundle.reach import reachable
from techniques import catalog
from techniques.base import SLOTS, claims
from techniques.config import OF_A_PLACE, TRAINER_FIELDS, Config, Resolved

# Receivers, keywords and calls that serve the audit, the ledger and machine-read files
LAB = {"audit", "ledger", "differ", "noun"}
LAB_CALLS = set(
    "averaged changed check_finite filled forget_steps metrics note note_of note_rounding note_steps "
    "plain_optimizers write_json".split()
)
HEARD = ("data_path", "tokenizer_path", "seed")  # what the environment may still say; it decides no branch
TEMPLATES = ROOT / "runs" / ".templates"
# The run's own, wherever it is named; what is called `device` alone may be a tensor's
DEVICES = ("self.device", "world.device", "self.world.device", "ids.device")

STAND_INS = """
class Technique:
    positionwise = False
    def __init__(self, config):
        self.config = config
    def phases(self):
        return ()
    def batch(self, batch, phase):
        return batch
def claims(technique):
    return dir(technique)
class Config(SimpleNamespace):
    def shape(self):
        return Shape{shape}
class Resolved:
    def __init__(self, config, techniques, values):
        self.config, self.techniques, self.values = config, techniques, values
        self.costs = {costs}
    def shape(self):
        return Shape{planned}
    def owner(self, slot):
        return next((t for t in self.techniques.values() if slot in claims(t)), None)
    def head(self):
        return {{k: v for k, v in self.values.items() if k not in {late}}}
def settings_from():
    values = {literal}
    for name in {heard}:
        values[name] = type(values[name])(os.environ.get(name.upper(), values[name]))
    def own(name):
        return SimpleNamespace(**{{k[len(name):]: v for k, v in values.items() if k.startswith(name)}})
    return Resolved(Config(**values, **{quiet}), {made}, values)
class Dataset:
    def __init__(self, folder, tokenizer_path, vocab_size, seq_len):
        self.seq_len = seq_len
        self.train_paths, self.val_paths = shard_paths(folder, "train"), shard_paths(folder, "val")
        self.num_val_tokens = sum(read_header(path) for path in self.val_paths)
        tokenizer = load_tokenizer(tokenizer_path, vocab_size=vocab_size)
        self.luts = byte_luts(tokenizer)
        self.sidecars = sidecar_paths(folder) if is_caseops(tokenizer) else ()
    @property
    def num_scored_tokens(self):
        return usable_tokens(self.num_val_tokens, seq_len=self.seq_len)
    def val_tokens(self, *, max_tokens=None):
        total = self.num_val_tokens if max_tokens is None else min(self.num_val_tokens, max_tokens)
        return read_tokens(self.val_paths, limit=usable_tokens(total, seq_len=self.seq_len) + 1)
    def target_bytes(self, tokens):
        if self.sidecars:
            return read_tokens(self.sidecars, limit=tokens.size)[1:]
        return count_bytes(self.luts, tokens[:-1], tokens[1:])
class Log:
    def __init__(self, rank):
        self.loud = rank == 0
        if self.loud:
            self._text = open("train.log", "w", 1, "utf-8")  # whatever the locale: it holds the code
    def __call__(self, line, *, screen=True):
        if self.loud:
            print(line, file=self._text)
            if screen:
                print(line, flush=True)
class Run:
    def __init__(self, resolved):
        self.resolved = resolved
    def go(self):
        resolved, c = self.resolved, self.resolved.config
        if c.num_threads:
            torch.set_num_threads(c.num_threads)
        world = World(c)
        torch.set_float32_matmul_precision("high")
        log = Log(world.rank)
        reporter, seams = Reporter(log, c), Seams(resolved)
        data = Dataset(c.data_path, c.tokenizer_path, c.vocab_size, c.shape().eval_seq_len)
        code, dtype = Path(__file__).read_bytes(), compute_dtype(c, world.device)
        kernel, _ = pick_attention(c.attention, world.device, dtype)
        reporter.code([code.decode("latin1")], world.device)
        facts = {{"attention": kernel, "compute_dtype": dtype, "world_size": world.size}}
        reporter.settings(resolved, data, facts)
        trainer = Trainer(seams, world, data, log)
        log(f"model_params:{{sum(trainer.optimizers.params_by_role.values())}}")
        trained = trainer.run()
        torch.manual_seed(c.seed)
        packed, _ = quantize(trained.weights, trainer.model, seams, calibration(trainer))
        codec = seams.codec()
        artifact = world.from_first(pack(packed, resolved.head(), codec))
        if log.loud:
            Path("artifact.bin").write_bytes(artifact)
        reporter.sizes(codec.name, len(artifact), len(code))
        score, protocol, seconds = evaluate(artifact, seams, world, data)
        reporter.score(codec.name, protocol, score, seconds["timed"])
        log(f"peak memory allocated: {{torch.cuda.max_memory_allocated() // 2**20}} MiB")
        world.close()
        return 0
def compiled_or_eager(graph, eager, config, world):
    return graph
def main(argv):
    return Run(settings_from()).go()
"""
# Methods that take the place of a class's own
METHODS = """
class Seams:
    def __init__(self, resolved):
        self.resolved, self.techniques = resolved, resolved.techniques
    def chain(self, seam, value, *rest):
        for technique in self.entering(seam):
            value = getattr(technique, seam)(value, *rest)
        return value
    def codec(self):
        return self.slot("codec", ZlibCodec)
class World:
    def seconds(self):
        return time.perf_counter()
class Trainer:
    def audit_schedule_and_model(self):
        next(self.loader.step())  # the audit's batch: what calibrates comes behind it
    def exported_weights(self):
        weights = {n: p.detach() for n, p in self.model.named_parameters()}
        if self.averager is not None:
            weights = self.averager.weights()
        return {n: w.to("cpu", torch.float32).clone() for n, w in weights.items()}
"""
HEAD = "import os\nimport subprocess\nimport sys\nfrom pathlib import Path\nfrom types import SimpleNamespace"

# Names of ours that an object of Python, torch, numpy or sentencepiece has as well (test_lean.py looks)
FOREIGN = set(
    """
Block Config Linear Value anchor angle args argv array attention audit average backward base beta bias block
block_size bos_id buffers byte bytes chain choose chunk classes clip close codecs compile compress config
copy cos count cross_entropy cuda cudnn data decode decompress defaults device diagonal digest digest_size
dim done dot dtype e embedding encode encoding end environ error errors escape export f field fields fix
flags flat flatten floor flush format forward frac full gather grad graph group groups half hub id_to_piece
identity index indices info init inner is_byte is_control is_unknown is_unused item items keys kind layout
linear load load_state_dict log lower m machine match max mean metadata mode modules name names new node
norm num number numel open overrides owner package param_groups parameter parameters parents parts path
pattern permute place prefix processor put read record replace requires_grad resolve result rms_norm root
run seed sha256 shape sign sin size sort span special split square squeeze stack start state state_dict step
stop stream streams stride suffix sum synchronize t take temperature tensor threshold to token train update
upper values version vocab_size weight where windows write zero_grad
""".split()
)


@dataclasses.dataclass
class Blanks:
    """Values that a template leaves open; `leave(value)` gives what stands for one, a string `@n@`."""

    values: list[Any] = dataclasses.field(default_factory=list[Any])

    def leave(self, value: Any) -> str:
        self.values.append(value)
        return f"@{len(self.values) - 1}@"

    def leave_all(self, values: Mapping[str, Any]) -> dict[str, str]:
        return {name: self.leave(value) for name, value in values.items()}

    def fill(self, template: str) -> str:
        """The template's text with the values in it."""
        return re.sub(r"'@(\d+)@'", lambda m: names.without_blanks(repr(self.values[int(m[1])])), template)


def stand_ins(resolved: Resolved, blanks: Blanks) -> str:
    """Definitions that take the place of the bundle's own of the same names; values are left open."""
    whole = resolved.identity()
    stored = resolved.head()
    scorer = next((n for n, t in resolved.techniques.items() if "scorer" in claims(t)), "")
    passes_of = resolved.costs[scorer].eval_passes if scorer else 0
    costs = f"{{{scorer!r}: SimpleNamespace(eval_passes={blanks.leave(passes_of)!r})}}" if scorer else "{}"
    classes = {n: type(t).__name__ for n, t in resolved.techniques.items()}
    made = ", ".join(f"{n!r}: {cls}(own({n + '.'!r}))" for n, cls in classes.items())
    return STAND_INS.format(
        shape=tuple(map(blanks.leave, dataclasses.astuple(resolved.config.shape()))),
        planned=tuple(map(blanks.leave, dataclasses.astuple(resolved.shape()))),
        costs=costs,
        late=tuple(n for n in whole if n not in stored),
        literal=dictionary(blanks.leave_all(whole)),
        heard=HEARD,
        quiet=dictionary(blanks.leave_all(resolved.beside())),
        made=f"{{{made}}}",
    )


def statements(tree: ast.Module) -> list[ast.stmt]:
    """Those of the tree, less what only a reader or the lab needs."""
    return ast.fix_missing_locations(passes.without(passes.bare(tree), LAB, LAB_CALLS)).body


def with_methods(node: ast.stmt, methods: Mapping[str, ast.ClassDef]) -> ast.stmt:
    """The statement; a class with its methods of METHODS in their places."""
    if isinstance(node, ast.ClassDef) and node.name in methods:
        new = {n.name: n for n in methods[node.name].body if isinstance(n, DEFINITIONS)}
        node.body = [new.pop(getattr(n, "name", ""), n) for n in node.body]
        assert not new, f"{node.name} no longer has {sorted(new)}"
    return node


def whole_shelf() -> list[Piece]:
    """Every statement of the trainer and of all techniques, the imports first."""
    known = catalog.metadata()
    files = catalog.technique_files()
    classes = {name: cls.__name__ for name, cls in known.items()}
    froms = (f"from techniques.{files[n].parent.name}.{n} import {c}" for n, c in classes.items())
    catalog_of = CATALOG.format(imports="; ".join(froms), table="")
    whole = program(ROOT, "train_gpt", replaced={"techniques.catalog": catalog_of, "train_gpt": SCRIPT})
    lines = [line for line in import_lines(whole, whole.imports.keys()) if line not in HEAD.splitlines()]
    methods = {n.name: n for n in ast.parse(METHODS).body if isinstance(n, ast.ClassDef)}
    nodes = [n for piece in whole.pieces for n in ast.parse(piece.text).body]
    ours = statements(ast.Module([with_methods(n, methods) for n in nodes], []))
    return [piece_of(n, {}) for n in (*ast.parse("\n".join([HEAD, *lines])).body, *ours)]


def lean_tree(stand_in: str, decided: passes.Decided, shelf: Sequence[Piece]) -> ast.Module:
    """The program with its names as they are: to be read."""
    new = {n.name: piece_of(n, {}) for n in statements(ast.parse(stand_in)) if isinstance(n, DEFINITIONS)}
    pieces = [new.pop("".join(piece.defines), piece) for piece in shelf]
    assert not new, f"the trainer no longer defines {sorted(new)}"
    imports = [p.text for p in pieces if p.text.startswith(("import ", "from "))]
    tree = ast.parse("\n".join([*imports, *(p.text for p in reached(pieces) if p.text not in imports)]))
    tree = reachable(passes.short(passes.decided(tree, decided)))
    return ast.fix_missing_locations(tree)


def other_fields(shelf: Sequence[Piece]) -> set[str]:
    """Fields of records beside the settings and Shape, which holds the settings' own values: what is called
    `config` somewhere may be one of them (awq_lite solves under settings of its own)."""
    nodes = [n for piece in shelf if piece.text.startswith("@dataclass") for n in ast.parse(piece.text).body]
    records = [n for n in nodes if isinstance(n, ast.ClassDef) and n.name not in ("Config", "Shape")]
    fields = [n.target for record in records for n in record.body if isinstance(n, ast.AnnAssign)]
    return {n.id for n in fields if isinstance(n, ast.Name)}


def settings_alike(resolved: Resolved, shelf: Sequence[Piece]) -> dict[str, Any]:
    """Settings on which the trainer's, every technique's and all other records agree that have one of the
    name."""
    found: dict[str, Any] = {n: resolved.values[n] for n in TRAINER_FIELDS} | {"num_reports": 0}
    clash = {*HEARD, *OF_A_PLACE, *other_fields(shelf)}
    for own in own_settings(resolved).values():
        clash |= {n for n, value in own.items() if found.setdefault(n, value) != value}
    return {n: value for n, value in found.items() if n not in clash}


def own_settings(resolved: Resolved) -> dict[str, dict[str, Any]]:
    """class of each technique -> its settings."""
    configs = {type(t).__name__: t.config for t in resolved.techniques.values()}
    return {name: {f.name: getattr(c, f.name) for f in dataclasses.fields(c)} for name, c in configs.items()}


def empty_slots(resolved: Resolved) -> dict[str, None]:
    """The text of each question for a slot's owner that has none."""
    free = [slot for slot in SLOTS if resolved.owner(slot) is None]
    return {f"{seams}.owner({slot!r})": None for seams in ("seams", "self.seams") for slot in free}


def known_of_the_device(resolved: Resolved) -> dict[str, Any]:
    """The text of each question for the device that the settings answer: all of them where they name it.
    `auto` says that it is a real one, and whether a CPU would ever attend in blocks."""
    c = resolved.config
    known: dict[str, Any] = {f"{device}.type": c.device for device in DEVICES if c.device != "auto"}
    known["attention"] = c.attention  # of pick_attention
    known |= {"device.type == 'meta'": False, "device.type != 'meta'": True}
    if not may_block(c):
        known["has_blocked(device)"] = False
    elif c.device == "cpu":
        known["has_blocked(device)"] = True
    return known


def may_block(config: Config) -> bool:
    """Whether attention in blocks may run under these settings on some machine (`pick_attention`)."""
    chosen = config.attention == "auto" and config.compute_dtype != "float32"
    return config.device != "cuda" and (chosen or config.attention == "blocked")


def decided_by(resolved: Resolved, shelf: Sequence[Piece]) -> passes.Decided:
    """What the settings decide."""
    texts = empty_slots(resolved) | known_of_the_device(resolved)
    return passes.Decided(own_settings(resolved), settings_alike(resolved, shelf), texts)


@contextlib.contextmanager
def uncollected() -> Generator[None]:
    """Without looking for garbage: trees are made of many nodes that all live, and it takes a quarter."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def lean(resolved: Resolved, folder: Path | None = TEMPLATES) -> bytes:
    """The file that is submitted. `folder`: where templates are kept; None: nowhere."""
    return self_unpacking(lean_source(resolved, folder))


@uncollected()
def lean_source(resolved: Resolved, folder: Path | None = TEMPLATES) -> str:
    """The same before it is packed."""
    blanks = Blanks()
    stand_in = stand_ins(resolved, blanks)
    kept = Kept(folder, stand_in) if folder else None
    shelf = kept.shelf() if kept else whole_shelf()
    decided = decided_by(resolved, shelf)
    template = kept.find(decided) if kept else None
    if template is None:
        template = names.tight(names.renamed(lean_tree(stand_in, decided, shelf), FOREIGN))
        if kept:
            kept.keep(decided, template)
    return blanks.fill(template)


def export_lean(resolved: Resolved, folder: Path) -> Path:
    """Writes folder/train_gpt.py. ValueError when there is one already."""
    check_free(folder)
    return write(folder, lean(resolved))


class Kept:
    """What is kept in a folder: the shelf, and the templates of one text of the stand-ins (it names the
    techniques and every setting). What was made from other sources is gone."""

    def __init__(self, folder: Path, stand_in: str):
        self.folder = folder / source_digest()
        self.key = hashlib.sha256(stand_in.encode()).hexdigest()[:16]

    def read(self, path: Path) -> Any:
        """What is kept there; None when that is nothing whole."""
        try:
            return json.loads(zlib.decompress(path.read_bytes()))
        except (OSError, ValueError, zlib.error):
            return None

    def write(self, path: Path, told: Any) -> None:
        """A folder that cannot be written keeps nothing."""
        with contextlib.suppress(OSError):
            if not self.folder.is_dir():
                for old in self.folder.parent.glob("*"):
                    shutil.rmtree(old, ignore_errors=True)
                self.folder.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(f".{os.getpid()}")
            beside.write_bytes(zlib.compress(json.dumps(told).encode(), 1))
            beside.replace(path)

    def shelf(self) -> list[Piece]:
        path = self.folder / "shelf"
        told = self.read(path)
        if told is not None:
            return [Piece(text, frozenset(defines), frozenset(uses)) for text, defines, uses in told]
        pieces = whole_shelf()
        self.write(path, [[p.text, sorted(p.defines), sorted(p.uses)] for p in pieces])
        return pieces

    def find(self, decided: passes.Decided) -> str | None:
        """The template under which every test comes out as it does now."""
        for path in sorted(self.folder.glob(f"{self.key}-*")):
            told = self.read(path)
            if told and all(decided.again(owner, test) == outcome for owner, test, outcome in told["tests"]):
                return str(told["template"])
        return None

    def keep(self, decided: passes.Decided, template: str) -> None:
        tests = [[owner, test, outcome] for (owner, test), outcome in decided.outcomes.items()]
        name = f"{self.key}-{hashlib.sha256(repr(tests).encode()).hexdigest()[:8]}"
        self.write(self.folder / name, {"tests": tests, "template": template})


@functools.cache
def source_digest() -> str:
    """Of all that a template is made from: our sources and this Python's way to print one."""
    rooms = ("bundle", "corpus", "techniques", "trainer")
    files = [ROOT / "train_gpt.py", *sorted(p for room in rooms for p in (ROOT / room).rglob("*.py"))]
    hashed = hashlib.sha256(sys.version.encode())
    for path in files:
        hashed.update(path.read_bytes())
    return hashed.hexdigest()[:16]


@functools.lru_cache(1)  # a correction of the weights asks for its length, the packing for itself
def self_unpacking(source: str) -> bytes:
    """A Python source in latin-1 that unpacks `source` and runs it. A traceback shows no packed line."""
    packed = {lc: lzma.compress(source.encode(), lzma.FORMAT_RAW, filters=[filter_of(lc)]) for lc in range(5)}
    lc, data = min(packed.items(), key=lambda item: len(item[1]))
    quote = min((b"'", b'"'), key=data.count)
    for raw, told in ((b"\\", b"\\\\"), (quote, b"\\" + quote), (b"\n", b"\\n"), (b"\r", b"\\r")):
        data = data.replace(raw, told)
    data = re.sub(rb"\0(?=[0-7])", rb"\\x00", data).replace(b"\0", b"\\0")
    numbers = f"{{'id':{lzma.FILTER_LZMA1},'dict_size':1<<20,'lc':{lc},'lp':0,'pb':0}}"
    last = f"exec(lzma.decompress(s.encode('L1'),{lzma.FORMAT_RAW},None,[{numbers}]))\n"
    return b"#coding:L1\nimport lzma\ns=" + quote + data + quote + b"\n" + last.encode()


def filter_of(lc: int) -> Mapping[str, int]:
    best = 9 | lzma.PRESET_EXTREME
    return {"id": lzma.FILTER_LZMA1, "preset": best, "dict_size": 1 << 20, "lc": lc, "lp": 0, "pb": 0}
