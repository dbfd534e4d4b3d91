"""How a seam is declared, and what the parts that stand in some of them can do. No torch here.

    @slot("bytes")
    def codec(self) -> Codec: ...

says that one technique at most gives the codec, and that it shows in the run's bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True)
class Seam:
    """Where techniques enter the trainer: one method of Technique."""

    name: str
    kind: str  # chain: any number of techniques (topological on `after`, ties by name); slot: at most one
    changes: str  # what of a run a technique there changes: the audit's word
    every_step: bool  # asked at every training step: the audit asks whether any of them was another


def chain(changes: str, *, every_step: bool = False) -> Callable[[Method], Method]:
    """The decorated method is a seam that any number of techniques enter, one after the other."""
    return _seam("chain", changes, every_step)


def slot(changes: str, *, every_step: bool = False) -> Callable[[Method], Method]:
    """The decorated method is a seam that one technique fills at most, in place of the baseline's part."""
    return _seam("slot", changes, every_step)


def _seam(kind: str, changes: str, every_step: bool) -> Callable[[Method], Method]:
    def mark(method: Method) -> Method:
        vars(method)["seam"] = Seam(method.__name__, kind, changes, every_step)
        return method

    return mark


# ---- what the parts of some slots must be able to do -----------------------------------------------------

Torch: TypeAlias = Any  # a torch.Tensor, or the model


class HasFacts(Protocol):
    """Something that did its work, and can say what it did."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Figures for the audit, read when the work is done."""
        ...


class Averager(HasFacts, Protocol):
    def update(self, model: Torch, lr_scale: float) -> None:
        """After every training step."""

    def weights(self) -> dict[str, Torch]:
        """name -> fp32 tensor, of every parameter."""
        ...


class MatrixOptimizer(Protocol):
    """torch.optim.Optimizer, and what the trainer asks of the one that drives the matrices."""

    param_groups: list[dict[str, Any]]
    orthogonalize: Callable[[Torch, int], Torch]  # (g [N,r,c], steps) -> same shape

    def settle_gradients(self, params: Iterable[Torch], most: float) -> None:
        """Before a step: sum the gradients of all parameters over the ranks, then clip the norm of all to
        `most` (0: no clipping)."""

    def step(self) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class Quantizer(HasFacts, Protocol):
    """A method `prepare(export, bits)`, where there is one, learns beforehand of all that will be asked."""

    hessians: dict[str, Torch]  # name -> mean XᵀX [c,c] of the inputs, of tensors where it was collected

    def calibrate(self, model: Torch, batches: Iterable[tuple[Torch, Torch]]) -> None:
        """Once, before any tensor; `batches` of (inputs, targets) are training data: the training budget
        pays for this call if one is taken (trainer/ledger.py)."""

    def quantize(self, name: str, weight: Torch, bits: int, rule: Any) -> tuple[Torch, Torch]:
        """(q int8 [r,c], scale float16 [r]) of weight [r,c]; `rule` is what `row_scale` gave, or None."""
        ...


class Codec(Protocol):
    name: str  # stands in the artifact

    def compress(self, data: bytes) -> bytes: ...

    def decompress(self, data: bytes) -> bytes: ...


class Scorer(HasFacts, Protocol):
    def score(self, run: Any) -> None:
        """Write the nats of each validation position exactly once (train_gpt.Evaluation)."""
