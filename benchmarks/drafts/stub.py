"""reach(script, environment, folder) -> Reached: how far a training script for CUDA comes on a CPU.

The script runs in a forked child, in an empty folder, unchanged, with the parts of CUDA that it asks for made
up: devices are the CPU, FlashAttention returns its query (and refuses the heads that the real one refuses),
Triton's kernels do nothing, shards are small files of random tokens, a tokenizer has as many tokens as
VOCAB_SIZE. It ends with the first forward pass of its model, over one short sequence. So its own checks and
the shapes of its model are tried, nothing behind them: no backward pass, no quantization, no evaluation.
"""

from __future__ import annotations

import builtins
import contextlib
import glob
import importlib.abc
import importlib.machinery
import os
import runpy
import select
import signal
import subprocess
import sys
import time
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
import torch._dynamo  # once, in the parent: scripts ask for it
from torch.overrides import TorchFunctionMode

STAGES = ("start", "model", "forward", "passed")  # began; its model was built; called; one pass is over
ABSENT = ("triton", "flash_attn", "flash_attn_interface", "kernels", "wandb", "cut_cross_entropy", "pynvml")
TOKENS = 1 << 21  # of each made-up shard
TOKENS_IN = 64  # of the sequence that the forward pass gets
MODEL = 100_000  # parameters from which a module is the model
DOCUMENT = 700  # tokens from one document's first token to the next one's
BOS = 1


@dataclass(frozen=True)
class Reached:
    stage: str  # one of STAGES
    error: str  # the exception that ended it; "" when it passed

    @property
    def rank(self) -> int:
        return STAGES.index(self.stage)


class Enough(BaseException):
    """The forward pass is over."""


def reach(script: Path, environment: Mapping[str, str], folder: Path, *, timeout_s: float = 300.0) -> Reached:
    """Runs it; `folder` is its working directory."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _child(script, environment, folder, theirs)
    os.close(theirs)
    told = b""
    until = time.monotonic() + timeout_s
    while select.select([ours], [], [], max(0.0, until - time.monotonic()))[0]:
        data = os.read(ours, 1 << 16)
        if not data:
            break
        told += data
    else:
        os.kill(child, signal.SIGKILL)
        told += b"error:still running\n"
    os.close(ours)
    os.waitpid(child, 0)
    lines = told.decode("utf-8", "replace").splitlines()
    stages = [line for line in lines if line in STAGES]
    errors = [line.removeprefix("error:") for line in lines if line.startswith("error:")]
    stage = stages[-1] if stages else STAGES[0]
    died = "" if stage == STAGES[-1] else "it ended without a forward pass"
    return Reached(stage, errors[-1] if errors and stage != STAGES[-1] else died)


def _child(script: Path, environment: Mapping[str, str], folder: Path, to: int) -> None:
    def tell(line: str) -> None:
        os.write(to, (line.replace("\n", " ")[:500] + "\n").encode())

    try:
        os.chdir(folder)
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        os.environ.clear()
        os.environ.update(kept | {"OMP_NUM_THREADS": "1"} | dict(environment))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.argv = [str(script)]
        sys.path.insert(0, str(script.parent))
        torch.set_num_threads(1)
        _stub(tell)
        with _OnCpu():
            runpy.run_path(str(script), run_name="__main__")
    except Enough:
        tell(STAGES[-1])
    except BaseException as error:  # noqa: BLE001, whatever ends it is what is asked for
        tell(f"error:{type(error).__name__}: {error}")
    os._exit(0)


class _OnCpu(TorchFunctionMode):
    """Every device of CUDA is the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("cuda", "pin_memory") and args:
            return args[0]
        if name in ("record_stream",):
            return None
        kwargs = {k: _cpu(v) for k, v in (kwargs or {}).items() if k != "pin_memory"}
        return func(*[_cpu(a) for a in args], **kwargs)


def _cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value.startswith("cuda") else value


def _stub(tell: Any) -> None:
    """Everything that a script asks for and this machine has not."""
    _stub_cuda()
    _stub_modules()
    _stub_files()
    _stub_programs()
    for name in dir(torch.nn.init):
        if name.endswith("_") and not name.startswith("_"):
            setattr(torch.nn.init, name, lambda tensor, *a, **k: tensor)  # values do not matter here
    calls = list[bool]()
    call = torch.nn.Module.__call__
    seen = set[str]()

    def stage(name: str) -> None:
        if name not in seen:
            seen.add(name)
            tell(name)

    def called(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if calls or sum(p.numel() for p in self.parameters()) < MODEL:
            return call(self, *args, **kwargs)
        calls.append(True)
        stage("forward")
        with torch.no_grad():
            call(self, *map(_short, args), **{k: _short(v) for k, v in kwargs.items()})
        raise Enough

    torch.nn.Module.__call__ = called
    for optimizer in (torch.optim.Optimizer,):
        init = optimizer.__init__

        def built(self: Any, *args: Any, init: Any = init, **kwargs: Any) -> None:
            stage("model")
            init(self, *args, **kwargs)

        optimizer.__init__ = built  # type: ignore[method-assign]


def _short(value: Any) -> Any:
    """One short sequence of a batch of tokens; boundaries of documents within it."""
    if not isinstance(value, torch.Tensor) or value.is_floating_point():
        return min(value, TOKENS_IN) if isinstance(value, int) and value > TOKENS_IN else value
    if value.ndim == 2:
        return value[:1, :TOKENS_IN]
    if value.ndim == 1 and value.numel() > 1 and value[0] == 0 and bool((value.diff() >= 0).all()):
        return torch.tensor([0, TOKENS_IN], dtype=value.dtype)
    return value[:TOKENS_IN] if value.ndim == 1 else value


def _stub_cuda() -> None:
    facts = types.SimpleNamespace(
        name="made up", major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132
    )
    answers: dict[str, Any] = {
        **{"is_available": True, "device_count": 1, "current_device": 0, "is_bf16_supported": True},
        **{"get_device_properties": facts, "get_device_capability": (9, 0), "get_device_name": "made up"},
        **{
            "max_memory_allocated": 0,
            "max_memory_reserved": 0,
            "memory_allocated": 0,
            "mem_get_info": (2**36,) * 2,
        },
        **{"set_device": None, "synchronize": None, "manual_seed": None, "manual_seed_all": None},
        **{"empty_cache": None, "reset_peak_memory_stats": None},
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *a, answer=answer, **k: answer)
    for name in ("Stream", "Event", "current_stream", "stream", "CUDAGraph", "graph"):
        setattr(torch.cuda, name, MagicMock())
    torch.Tensor.is_cuda = property(lambda self: True)  # type: ignore[assignment, misc]
    torch.compile = lambda model=None, **k: model if model is not None else (lambda f: f)  # type: ignore[assignment]
    autocast = torch.autocast
    torch.autocast = lambda device_type="cpu", **k: autocast(
        "cpu", **{n: v for n, v in k.items() if n != "device_type"}
    )  # type: ignore[assignment, misc]
    torch.amp.autocast = torch.autocast  # type: ignore[misc]
    import torch.distributed as dist

    begin = dist.init_process_group
    dist.init_process_group = lambda *a, **k: begin("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[assignment]


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules that this machine has not: whatever one asks of them is made up."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in ABSENT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = _made_up  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _made_up(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _attention if "flash_attn" in name else MagicMock()


def _attention(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
    """FlashAttention's checks, and its query."""
    if q.shape[-2] % k.shape[-2]:
        raise RuntimeError(f"{q.shape[-2]} heads are no multiple of {k.shape[-2]} heads of keys")
    if q.shape[-1] % 8 or q.shape[-1] > 256:
        raise RuntimeError(f"a head dimension is a multiple of 8 up to 256, not {q.shape[-1]}")
    if q.dtype not in (torch.bfloat16, torch.float16):
        raise RuntimeError(f"FlashAttention takes bf16 and fp16, not {q.dtype}")
    return q.clone() if q.shape[-1] == v.shape[-1] else q.new_zeros(*q.shape[:-1], v.shape[-1])


class _Tokenizer(MagicMock):
    """A tokenizer of as many tokens as the environment says."""

    def vocab_size(self) -> int:
        return int(os.environ.get("VOCAB_SIZE", "1024"))

    GetPieceSize = get_piece_size = piece_size = vocab_size

    def is_control(self, token: int) -> bool:
        return token < 3

    IsControl = is_control

    def is_byte(self, token: int) -> bool:
        return False

    IsByte = is_unknown = is_unused = IsUnused = IsUnknown = is_byte

    def id_to_piece(self, token: int) -> str:
        return "\u2581ab"

    IdToPiece = id_to_piece

    def bos_id(self) -> int:
        return BOS


def _stub_files() -> None:
    """Data that is not here: shards where they are looked for, and tokenizers."""
    found, there = glob.glob, os.path.exists

    def made(pattern: str, *args: Any, **kwargs: Any) -> list[str]:
        real = found(pattern, *args, **kwargs)
        if real or not str(pattern).endswith(".bin"):
            return real
        path = Path(str(pattern).replace("*", "000000"))
        _shard(path)
        return [str(path)]

    glob.glob = made
    globbed = Path.glob

    def path_globbed(self: Path, pattern: str, *args: Any, **kwargs: Any) -> Any:
        real = list(globbed(self, pattern, *args, **kwargs))
        return iter(real or [Path(p) for p in made(str(self / pattern))])

    Path.glob = path_globbed  # type: ignore[method-assign]
    is_there = Path.exists
    Path.exists = lambda self, **k: is_there(self) or self.suffix in (".model", ".json")  # type: ignore[method-assign]
    Path.is_file = Path.exists  # type: ignore[method-assign, assignment]
    os.path.exists = lambda path: there(path) or str(path).endswith(".model")
    with contextlib.suppress(ImportError):
        import sentencepiece

        sentencepiece.SentencePieceProcessor = _Tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    opened = builtins.open
    builtins.open = lambda file, *a, **k: opened(
        os.devnull if str(file).endswith(".model") else file, *a, **k
    )


def _shard(path: Path) -> None:
    """A shard of the challenge's form: 256 words of head, then tokens of 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = np.zeros(256, dtype="<i4")
    head[:3] = 20240520, 1, TOKENS
    tokens = np.random.default_rng(1).integers(3, 250, TOKENS).astype("<u2")
    tokens[::DOCUMENT] = BOS
    path.write_bytes(head.tobytes() + tokens.tobytes())


def _stub_programs() -> None:
    """A program that is not here says nothing."""
    run = subprocess.run

    def ran(words: Any, *args: Any, **kwargs: Any) -> Any:
        if "nvidia-smi" in str(words):
            return subprocess.CompletedProcess(words, 0, stdout="", stderr="")
        return run(words, *args, **kwargs)

    subprocess.run = ran  # type: ignore[assignment]


def _stub_modules() -> None:
    sys.meta_path.append(_Absent())
