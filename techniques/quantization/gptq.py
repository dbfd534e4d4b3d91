"""min tr((W − Ŵ)H(W − Ŵ)ᵀ), H = mean XᵀX of the inputs: round a column, spread its error over the later ones.

With U the upper Cholesky factor of (H + damp·mean(diag H)·I)⁻¹, for each column j: q_j = clip(round(w_j/s)),
e = (w_j − s·q_j)/U_jj, w_k −= e·U_jk for k > j. The scale s is fixed per row from the original weights.

Source: GPTQ, arXiv:2210.17323; PR #535, #569, #1019, #1060 (about -0.0026 BPB against gptq_lite). Those damp
twice and pick the clip by plain squared error, the wrong criterion (`clip_rule = "mse"`); here damping is
applied once and the clip is picked by the error that GPTQ minimises. A column whose input is always zero is
dead: its weights become 0. Damping by role, `damp_embed`, `damp_mlp`, `damp_attn` (0: `damp`), is #2051's
(0.005, 0.02 and 0.01). `factor = "reverse"` finds the upper factor of H⁻¹ by one Cholesky factorisation of
the turned H (#1948): the same integers, fewer steps. `calibration = "train"` reads training batches and is
legal only inside the timed budget (#569, #631; set `reserve_seconds` to cover it); "self" lets the model
write its own sequences (#1019: 64 of 2048 tokens at temperature 0.8), reads no data and is not timed.
`embedding = 1` solves the output projection too (a tied embedding, or the head), whose inputs are the final
norm's outputs (#1394). Cost: calib_batches forward passes, timed, or one pass a token that is written,
untimed; then one solve a matrix in float64, columns first, all clips side by side, on as many cores as
PyTorch has threads (`python -m benchmarks.trainer.gptq_solve`). Matrices that no Linear-like module computes
(a table that is only looked up, techniques' projections), and those whose Cholesky fails at a hundred times
the damping too, are rounded as by gptq_lite. What we saw: studies/LOG.md, "quantisers on one trained model"
and "laptop, 200 trials on the embedded corpus".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from techniques._quant import Job, Solved, quantize_lite, round_rows, rows_at_floor, self_generated, solve_all
from techniques.base import Choice, Cost, Float, Int, Legality, Shape, Technique, Verdict, setting

GPTQ_ROLES = ("attn", "mlp")  # every 2-D weight of these must show its inputs to a hook

COUNTS = ("solved", "no_hessian", "damped_more", "cholesky_failed", "rows_at_floor")


def gptq_modules(model: Any) -> dict[str, Any]:
    """Parameter's name -> the module whose `weight` it is, for 2-D weights of GPTQ_ROLES."""
    return {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(weight := getattr(module, "weight", None), torch.nn.Parameter)
        and weight.ndim == 2
        and getattr(weight, "role", None) in GPTQ_ROLES
    }


class GptqQuantizer:
    """Collects Hessians, then rounds. `facts` counts what fell back and compares errors with rounding's."""

    def __init__(self, config: Any):
        self.config, self.reads_data = config, config.calibration == "train"
        self.hessians: dict[str, Tensor] = {}  # parameter's name -> mean XᵀX, float32 [c,c]
        self.solved: dict[str, Solved | None] = {}  # until `quantize` asks; None: the Cholesky failed
        self.ratios: list[float] = []  # Hessian error over that of plain rounding, per tensor
        self.facts: dict[str, Any] = dict.fromkeys(COUNTS, 0)

    def calibrate(self, model: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Mean XᵀX over the calibration sequences of all ranks. ValueError for a matrix not reached."""
        found = gptq_modules(model)
        expected = {
            n for n, p in model.named_parameters() if p.ndim == 2 and getattr(p, "role", None) in GPTQ_ROLES
        }
        if not expected or found.keys() != expected:
            missing = ", ".join(sorted(expected - found.keys())) or "no attn or mlp matrix at all"
            raise ValueError(
                f"gptq needs the inputs of every attn and mlp matrix, but found no module for: {missing}."
            )
        columns = {n: m.weight.size(1) for n, m in found.items()}
        head = "tok_emb" if model.head is None else "head.weight"
        if self.config.embedding:
            columns[head] = model.tok_emb.size(1)
        sums = {n: torch.zeros(c, c, device=model.tok_emb.device) for n, c in columns.items()}
        tokens = dict.fromkeys(columns, 0)

        def watch(name: str):
            def hook(_module: Any, args: tuple[Any, ...]) -> None:
                x = args[0].detach().reshape(-1, sums[name].size(0)).float()
                sums[name].addmm_(x.T, x)
                tokens[name] += x.size(0)

            return hook

        handles: list[Any] = []
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        rank = dist.get_rank() if ranks > 1 else 0
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                if self.reads_data:  # the loader deals them out in turn
                    mine = len(range(rank, self.config.calib_batches, ranks))
                    sequences = (ids for ids, _ in itertools.islice(batches, mine))
                else:  # written before a hook may count what passes
                    sequences = list(self_generated(model, self.config, rank=rank, ranks=ranks))
                handles += [m.register_forward_pre_hook(watch(n)) for n, m in found.items()]
                for ids in sequences:
                    h = model.hidden(ids)
                    if head in sums:
                        watch(head)(None, (model.before_head(h),))
        finally:
            model.train(was_training)
            for handle in handles:
                handle.remove()
        for name, total in sums.items():
            count = torch.tensor(tokens[name], dtype=torch.float64, device=total.device)
            if ranks > 1:
                dist.all_reduce(total)
                dist.all_reduce(count)
            if not int(count):
                raise ValueError(f"gptq's calibration never ran {name}: no batch, or the forward skips it.")
            self.hessians[name] = total.div_(float(count))  # in place: not twice in memory
        self.facts["hessians"] = len(self.hessians)

    def quantize(self, name: str, weight: Tensor, bits: int, rule: Any = None) -> tuple[Tensor, Tensor]:
        if name not in self.hessians:
            return self.fall_back("no_hessian", weight, bits, rule)
        if name not in self.solved:
            self.solve_jobs([(name, weight, bits, rule)])
        return self.told(self.solved.pop(name), weight, bits, rule)

    def prepare(self, export: Any, bits: Mapping[str, int]) -> None:
        """Solves what `quantize` is going to be asked for, matrices of one shape together; counts anew."""
        self.facts |= dict.fromkeys(COUNTS, 0)
        self.ratios = []
        rules = {n: export.seams.slot("row_scale", lambda _: None, export.roles[n]) for n in bits}
        self.solve_jobs([(n, export.weights[n], b, rules[n]) for n, b in bits.items()])

    def solve_jobs(self, jobs: Sequence[Job]) -> None:
        self.solved |= solve_all(jobs, self.hessians, self.config, self.damp_of)

    def told(self, found: Solved | None, weight: Tensor, bits: int, rule: Any) -> tuple[Tensor, Tensor]:
        """What is stored for one matrix, and the facts of it."""
        if found is None:
            unknown = torch.eye(weight.size(1))  # no input counts more than another
            by_rule = rule and (lambda w, b, _none: rule(w, b, unknown))
            return self.fall_back("cholesky_failed", weight, bits, by_rule)
        self.ratios.append(found.ratio)
        self.facts["solved"] += 1
        self.facts["damped_more"] += found.more > 1
        self.facts["rows_at_floor"] += rows_at_floor(found.scale, bits, self.config.scale_floor)
        self.facts["hessian_error_over_rounding"] = sum(self.ratios) / len(self.ratios)
        self.facts["worst_hessian_error_over_rounding"] = max(self.ratios)
        return found.q, found.scale

    def damp_of(self, name: str) -> float:
        """Of the matrix of this name."""
        c = self.config
        own = c.damp_mlp if ".mlp." in name else c.damp_attn if ".attn." in name else c.damp_embed
        return own or c.damp

    def fall_back(self, why: str, weight: Tensor, bits: int, rule: Any) -> tuple[Tensor, Tensor]:
        self.facts[why] += 1
        if rule:
            scale = rule(weight, bits, None)
            return round_rows(weight, scale, bits), scale
        q, scale = quantize_lite(weight, bits, self.config.scale_floor)
        self.facts["rows_at_floor"] += rows_at_floor(scale, bits, self.config.scale_floor)
        return q, scale


class Gptq(Technique):
    """Rounding that minimises the error of each layer's output on training inputs (full GPTQ)."""

    name = "gptq"
    reference = "arXiv:2210.17323; PR #535, #569, #1019, #1060; #2051 (damping by role), #1948 (reverse)"
    legality = Legality(Verdict.LEGAL_IF_TIMED, "calibration on training data inside the 600 s: #569, #631")
    stage = "quantize"
    space = {
        "calib_batches": Int(4, 256, log=True),
        "damp": Float(1e-3, 1e-1, log=True),
        "act_order": Choice((True, False)),
        "embedding": Choice((False, True)),
        "clip_rule": Choice(("hessian", "mse")),
    }
    env = {
        "GPTQ_ENABLED": "on",
        "GPTQ_CALIB_BATCHES": "calib_batches",
        "GPTQ_CALIBRATION_BATCHES": "calib_batches",
        "GPTQ_BLOCK_SIZE": "block_size",
        "GPTQ_DAMP": "damp",
        "GPTQ_DAMP_FRAC": "damp",
        "GPTQ_DAMP_EMBED": "damp_embed",
        "GPTQ_DAMP_MLP": "damp_mlp",
        "GPTQ_DAMP_ATTN": "damp_attn",
    }
    smoke = {"calib_batches": 4, "block_size": 16, "embedding": True}

    @dataclass(frozen=True)
    class Config:
        calib_batches: int = setting(
            64, "training micro-batches, over all ranks, that give H", low=1, high=4096
        )
        block_size: int = setting(
            128, "columns whose errors reach the later ones together", low=1, high=65_536
        )
        damp: float = setting(0.01, "added to H's diagonal, in means of it", low=1e-8, high=10.0)
        act_order: bool = setting(True, "take columns by falling diagonal of H")
        clip_rule: str = setting(
            "hessian",
            "picks the clip percentile: hessian error, or mse as published",
            choices=("hessian", "mse"),
        )
        scale_floor: str = setting(
            "tiny", "least scale: 1e-7, or the records' 1/qmax", choices=("tiny", "published")
        )
        embedding: bool = setting(False, "solve the tied embedding (or the head) too")
        calibration: str = setting(
            "train", "sequences that give H: training batches, or the model's own", choices=("train", "self")
        )
        self_sequences: int = setting(64, "sequences that the model writes", low=1, high=4096)
        self_tokens: int = setting(2048, "tokens of each", low=2, high=65_536)
        temperature: float = setting(0.8, "of their sampling", low=0.01, high=10.0)
        damp_embed: float = setting(0.0, "damp of the embedding and the head; 0: damp", low=0.0, high=10.0)
        damp_mlp: float = setting(0.0, "damp of MLP matrices; 0: damp", low=0.0, high=10.0)
        damp_attn: float = setting(0.0, "damp of attention matrices; 0: damp", low=0.0, high=10.0)
        factor: str = setting(
            "inverse", "H⁻¹ by two factorisations, or H turned round by one", choices=("inverse", "reverse")
        )

    def check(self, shape: Shape) -> None:
        longest, c = max(shape.seq_len, shape.eval_seq_len), self.config
        if c.calibration == "self" and c.self_tokens > longest:
            raise ValueError(
                f"`gptq.self_tokens` must be at most the longest sequence, but got {c.self_tokens} and "
                f"{longest}."
            )

    def verdict(self) -> Legality:
        if self.config.calibration == "self":
            return Legality(Verdict.LEGAL, "calibration on self-generated tokens: #728, merged as #1019")
        return self.legality

    def cost(self, shape: Shape) -> Cost:
        reads_data = self.config.calibration == "train"
        return Cost(calibration_passes=float(self.config.calib_batches) if reads_data else 0.0)

    def quantizer(self) -> GptqQuantizer:
        return GptqQuantizer(self.config)
