"""The ground a run stands on: ranks and device, clocks, files, and whether its graphs are compiled."""

from __future__ import annotations

import inspect
import os
import platform
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from techniques.base import Unavailable
from techniques.config import Config
from trainer.ledger import Ledger
from trainer.machine import cpu_name, resident_peak

GRAPHS = 64  # compiled ones at most: one for each phase and each size of batch


class World:
    """This process among its ranks, and its device. One process is a world of size 1 without
    torch.distributed."""

    def __init__(self, config: Config):
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.ledger = Ledger(self.seconds, self.synchronize)
        self.earlier_peak_bytes = 0  # of earlier stages, also of a process whose stages were taken over
        self.stage_memory: dict[str, int] = {}  # stage -> its peak, bytes
        self.counts_stages = True  # whether the system can start the count anew
        self.not_compiled: list[str] = []  # why `compile auto` compiled nothing, if it did not
        self._thread = time.pthread_getcpuclockid(threading.get_ident())
        self._threads = torch.get_num_threads()
        self._seconds = 0.0
        self._used = [0.0, 0.0]  # processor seconds of that thread, and a thread of all, at the last reading
        cuda = torch.cuda.is_available() if config.device == "auto" else config.device == "cuda"
        if cuda and not torch.cuda.is_available():
            raise Unavailable(
                "A GPU was demanded (--device cuda), but torch sees none here. Use --device cpu or auto."
            )
        if config.micro_batches % self.size:
            raise ValueError(
                f"The world size must divide `micro_batches`, but got {self.size} and "
                f"{config.micro_batches}. Start another number of ranks, or set --micro_batches {self.size}."
            )
        self.device = (
            torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
        )
        if cuda:
            torch.cuda.set_device(self.device)
        self._steps: list[torch.cuda.Event] = []  # ends of the steps that the device may still work on
        if self.size > 1:  # what ranks decide together travels beside the device, not behind its work
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(backend, device_id=self.device if cuda else None)
        if not compiles(config, self):
            plain_optimizers()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, a new tensor."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def max(self, value: float) -> float:
        """The largest of all ranks' `value`: what they decide together."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return float(tensor)

    def from_first(self, data: bytes) -> bytes:
        """Rank 0's bytes, on every rank."""
        if self.size == 1:
            return data
        box = [data]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def agree(self, what: str, value: str) -> None:
        """RuntimeError unless every rank holds the same `value` (a hash of the resolved configuration,
        say)."""
        mine = torch.tensor([int(value[:12], 16)], dtype=torch.int64)
        low, high = mine.clone(), mine.clone()
        if self.size > 1:
            dist.all_reduce(low, op=dist.ReduceOp.MIN)
            dist.all_reduce(high, op=dist.ReduceOp.MAX)
        if int(low) != int(high):
            raise RuntimeError(
                f"The ranks disagree on {what}: start them all with the same files and settings."
            )

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self) -> float:
        """What every timed clock reads. On a GPU the wall's seconds. On a CPU processor seconds a thread, so
        that nobody else's work on the machine counts: between two readings what the run's own thread used,
        or, where that is more, what all threads and the children that ended used, shared by the threads that
        PyTorch has. Sleep and waiting (for a disk, for another rank) are no processor seconds."""
        if self.device.type == "cuda":
            return time.perf_counter()
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        whole = time.process_time() + ended.ru_utime + ended.ru_stime
        before = self._used
        self._used = [time.clock_gettime(self._thread), whole / self._threads]
        self._seconds += max(now - then for now, then in zip(self._used, before, strict=True))
        return self._seconds

    def keep_pace(self) -> int:
        """Once a step: waits until the device is one step behind at most. Returns how many it may be."""
        if self.device.type != "cuda":
            return 0
        self._steps.append(torch.cuda.Event())
        self._steps[-1].record()
        if len(self._steps) > 1:
            self._steps.pop(0).synchronize()
        return 1

    def my_range(self, n: int) -> range:
        """This rank's contiguous share of range(n)."""
        return range(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def machine(self, attention: str, dtype: torch.dtype, compile: str) -> dict[str, Any]:
        """What of this ground the last bits of a result depend on, and what a second buys on it."""
        facts: dict[str, Any] = {"torch": torch.__version__, "world_size": self.size, "compile": compile}
        facts |= {"attention": attention, "dtype": str(dtype)}
        if self.device.type == "cuda":
            return facts | {"device": torch.cuda.get_device_name(self.device)}
        kernels = torch.backends.cpu.get_cpu_capability()
        return facts | {"device": cpu_name(), "kernels": kernels, "threads": torch.get_num_threads()}

    def machine_facts(self, attention: str, dtype: torch.dtype) -> dict[str, Any]:
        """The same ground as people read it, in the result."""
        cuda = self.device.type == "cuda"
        return {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": torch.cuda.get_device_name() if cuda else platform.processor() or "cpu",
            "device_type": self.device.type,
            "world_size": self.size,
            "attention": attention,
            "compute_dtype": str(dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }

    def stage_ended(self, stage: str) -> None:
        """Keeps the stage's peak memory, of the device or of this process; the next stage's counts anew."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            peak, self.counts_stages = resident_peak()
        self.stage_memory[stage] = max(peak, self.stage_memory.get(stage, 0))
        self.earlier_peak_bytes = max(peak, self.earlier_peak_bytes)

    def close(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


class Diverged(Exception):
    """A loss or a weight is no longer a number: the configuration's fault, not the machine's."""


def check_finite(what: str, *tensors: Tensor) -> None:
    """Diverged unless every element is a number."""
    if not all(bool(t.isfinite().all()) for t in tensors):
        raise Diverged(f"{what} is not finite")


class Clock:
    """World.seconds that only run between start() and stop(), after the device has caught up. What is timed
    is timed by one of these, and the ledger knows whether one runs."""

    def __init__(self, world: World):
        self.world, self.seconds, self._since = world, 0.0, None

    def start(self) -> None:
        self.world.synchronize()
        self.world.ledger.timing(1)
        self._since = self.world.seconds()

    def stop(self) -> float:
        self.world.synchronize()
        self.seconds = self.now()
        if self._since is not None:
            self.world.ledger.timing(-1)
        self._since = None
        return self.seconds

    def now(self) -> float:
        return self.seconds + (self.world.seconds() - self._since if self._since is not None else 0.0)


def write_atomically(path: Path, data: bytes) -> None:
    """The file is either whole or not there: written beside its place, synced, then renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def compiles(config: Config, world: World) -> bool:
    """Whether the settings want compiled graphs here, and none has failed."""
    wanted = config.compile == "auto" and world.device.type == "cuda" and not world.not_compiled
    return config.compile == "on" or wanted


def plain_optimizers() -> None:
    """torch.optim without what serves torch.compile alone: the first call of each of these methods imports
    torch._dynamo, 1.2 s of CPU, to be left out of its graphs. What they compute stays theirs."""
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        setattr(torch.optim.Optimizer, name, inspect.unwrap(getattr(torch.optim.Optimizer, name)))
    for kind in (torch.optim.Adam, torch.optim.SGD):
        kind.step = torch.no_grad()(inspect.unwrap(kind.step))


def maybe_compile(model: Any, config: Config, world: World) -> Callable[[Tensor, Tensor], Tensor]:
    """The training's loss(ids [B,T], targets [B,T]), compiled where the settings want it."""
    if not compiles(config, world):
        return model
    torch._dynamo.config.recompile_limit = GRAPHS  # type: ignore[attr-defined]
    return compiled_or_eager(torch.compile(model, dynamic=False, fullgraph=True), model, config, world)


def compiled_or_eager(graph: Any, eager: Any, config: Config, world: World) -> Callable[..., Tensor]:
    """`graph`; once it cannot be compiled here, `eager` under `compile auto` (world.not_compiled says why).
    Unavailable under `compile on`."""

    def run(*args: Tensor) -> Tensor:
        if world.not_compiled:
            return eager(*args)
        try:
            return graph(*args)
        except (torch._dynamo.exc.BackendCompilerFailed, OSError, ImportError) as error:  # type: ignore[attr-defined]
            cause = getattr(error, "inner_exception", error)
            why = f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"
            if config.compile == "on":
                raise Unavailable(
                    f"`compile` is on, but nothing can be compiled here: {why}. It takes a C++ compiler and "
                    "a folder whose files may run (TMPDIR, or TORCHINDUCTOR_CACHE_DIR); or set --compile off."
                ) from error
            world.not_compiled.append(f"compile: the run was eager, because nothing can be compiled: {why}")
            return eager(*args)

    return run


def compute_dtype(config: Config, device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU and on CPUs that have its instructions (elsewhere it is slower than float32)."""
    if config.compute_dtype != "auto":
        return getattr(torch, config.compute_dtype)
    fast = (
        device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
    return torch.bfloat16 if fast else torch.float32
