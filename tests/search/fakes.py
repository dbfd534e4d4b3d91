"""A small catalogue and a study file for the search's tests: no torch, no technique file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.study.load import load_study
from search.study.model import Study
from techniques.base import Choice, Cost, Float, Int, Legality, Shape, Technique, TensorSpec, Verdict, setting

HEADER = """
[study]
name = "fake"
preset = "laptop"
track = "record"
[limits]
artifact_bytes = 100_000_000
train_seconds = 100
eval_seconds = 100
"""


class Plain(Technique):
    """Settings of every kind."""

    name = "plain"
    space = {
        "gain": Float(0.1, 10.0, log=True),
        "last_n": Int(1, "num_layers"),
        "mode": Choice(("a", "b", "c")),
    }

    @dataclass(frozen=True)
    class Config:
        gain: float = setting(1.0, "gain", low=0.01, high=100.0)
        last_n: int = setting(1, "layers", low=1, high=64)
        mode: str = setting("a", "mode", choices=("a", "b", "c"))

    def init(self, model: Any) -> None:
        """chain."""


class Table(Technique):
    """Parameters."""

    name = "table"
    space = {"rows": Int(16, 4096, log=True)}

    @dataclass(frozen=True)
    class Config:
        rows: int = setting(64, "rows", low=2)

    def cost(self, shape: Shape) -> Cost:
        return Cost(tensors=(TensorSpec("embed", (self.config.rows, shape.model_dim)),))


class FineRound(Technique):
    name = "fine_round"
    space = {"damp": Float(1e-3, 1e-1, log=True)}

    @dataclass(frozen=True)
    class Config:
        damp: float = setting(0.01, "damping", low=0.0)

    def quantizer(self) -> Any:
        return None


class CoarseRound(Technique):
    name = "coarse_round"

    def quantizer(self) -> Any:
        return None


class Narrow(Technique):
    name = "narrow"
    space = {"width": Choice((4, 5, 6))}

    @dataclass(frozen=True)
    class Config:
        width: int = setting(6, "bits", choices=(4, 5, 6))

    def bits(self, role: str) -> int | None:
        return self.config.width


class Slide(Technique):
    name = "slide"
    space = {"stride": Int(16, "eval_seq_len", log=True)}

    @dataclass(frozen=True)
    class Config:
        stride: int = setting(64, "tokens", low=1)

    def cost(self, shape: Shape) -> Cost:
        return Cost(eval_passes=shape.eval_seq_len / self.config.stride - 1.0)

    def scorer(self) -> Any:
        return None


class Peek(Technique):
    """A scorer that the record track never admits."""

    name = "peek"
    legality = Legality(Verdict.CONTESTED, "nobody ruled")

    def scorer(self) -> Any:
        return None


class Fit(Technique):
    """Legal or not, by a setting."""

    name = "fit"
    legality = Legality(Verdict.CONTESTED, "depends on the mask")
    space = {"mask": Choice(("scored", "context"))}

    @dataclass(frozen=True)
    class Config:
        mask: str = setting("scored", "mask", choices=("scored", "context"))

    def verdict(self) -> Legality:
        return Legality(Verdict.LEGAL if self.config.mask == "context" else Verdict.CONTESTED, "mask")

    def init(self, model: Any) -> None:
        """chain."""


class Cooling(Technique):
    name = "cooling"
    overrides = ("warmdown_iters",)
    space = {"frac": Float(0.1, 1.0)}

    @dataclass(frozen=True)
    class Config:
        frac: float = setting(0.5, "share", low=0.0, high=1.0)

    def lr_scale(self, progress: float) -> float | None:
        return 1.0


class Rival(Technique):
    name = "rival"
    conflicts = {"plain": "they write the same tensor"}

    def init(self, model: Any) -> None:
        """chain."""


class Rider(Technique):
    name = "rider"
    requires = ("table",)

    def init(self, model: Any) -> None:
        """chain."""


KNOWN: dict[str, type[Technique]] = {
    cls.name: cls
    for cls in (CoarseRound, Cooling, FineRound, Fit, Narrow, Peek, Plain, Rider, Rival, Slide, Table)
}


def make_study(folder: Path, text: str = "", *, header: str = HEADER) -> Study:
    """The study of a file with these tables after the header."""
    path = folder / "fake.toml"
    path.write_text(header + text, encoding="utf-8")
    return load_study(path, KNOWN)
