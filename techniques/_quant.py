"""q = clip(round(w/s), ±qmax), s = clip/qmax, clip = a quantile of the row's |w|, qmax = 2^(bits-1) - 1.

Shared by the quantisers that search the clip (gptq_lite, gptq). Weights [r,c]; scales float16 [P,r], P
percentiles.

GPTQ's solve, its objective, and calibration sequences that a model writes itself: H [c,c] is the mean of XᵀX
over the inputs of a matrix W. The search for the least step of a change whose file fits a size, by an
estimate and few packings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

CLIP_PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
Job = tuple[str, Tensor, int, Any]  # name, weight [r,c], bits, the rule of its scales or None
LEAF = 16  # columns whose errors reach each other one by one; more do it by halves
TINY_SCALE = 1e-7  # above float16's smallest subnormal (6e-8): an all-zero row keeps a scale that divides


SELF_BATCH = 8  # sequences that are written side by side (#1019)
PACKINGS = 6  # of a search for bytes at most, unless none of them fits
TRIES = 24  # at most instead, while all of a search's packings together have at most
CHEAP_BYTES = 1_000_000
# How much lower the first guesses aim while nothing fits, in errors of the last; then twice as much each time
CAUTION = (0.0, 0.125, 1.0)
FINE_SHARE = 2000  # a file that spares less than this part of its target is near enough,
FINE_BYTES = 16  # or so many bytes


def top_quantiles(x: Tensor, shares: Tensor) -> Tensor:
    """torch.quantile(x, shares, dim=1), [P,r] of x [r,c] in float32, bit for bit; only what lies above
    the least share is sorted."""
    last = x.size(1) - 1
    ranks = shares * last
    low = ranks.long()
    top = x.topk(x.size(1) - int(low.min()), dim=1).values.T  # [k,r], falling
    return torch.lerp(top[last - low], top[last - ranks.ceil().long()], (ranks - low)[:, None])


def clip_scales(weight: Tensor, bits: int, scale_floor: str) -> Tensor:
    """Scales float16 [P,r], one row per percentile. `scale_floor` "tiny" is 1e-7; "published" is 1/qmax,
    under which all rows that clip below 1.0 get one and the same step, whatever the percentile."""
    qmax = 2 ** (bits - 1) - 1
    clips = top_quantiles(weight.abs().float(), torch.tensor(CLIP_PERCENTILES, device=weight.device))
    return (clips / qmax).clamp_min(TINY_SCALE if scale_floor == "tiny" else 1.0 / qmax).to(torch.float16)


def rows_at_floor(scale: Tensor, bits: int, scale_floor: str) -> int:
    """How many of the scales [r] are the floor itself."""
    floor = TINY_SCALE if scale_floor == "tiny" else 1.0 / (2 ** (bits - 1) - 1)
    return int((scale == torch.tensor(floor, dtype=torch.float16, device=scale.device)).sum())


def round_rows(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """q int8 [..,r,c] of weight [r,c] under scales [..,r]."""
    qmax = 2 ** (bits - 1) - 1
    return torch.round(weight / scale.to(weight.dtype)[..., None]).clamp(-qmax, qmax).to(torch.int8)


def quantize_lite(weight: Tensor, bits: int, scale_floor: str) -> tuple[Tensor, Tensor]:
    """(q int8 [r,c], scale float16 [r]) at the percentile, one per matrix, of the least squared error."""
    best: tuple[float, Tensor, Tensor] | None = None
    for scale in clip_scales(weight, bits, scale_floor):
        q = round_rows(weight, scale, bits)
        error = float(
            (weight - q.to(weight.dtype) * scale.to(weight.dtype)[:, None]).square().sum(dtype=torch.float64)
        )
        if best is None or error < best[0]:
            best = (error, q, scale)
    assert best is not None
    return best[1], best[2]


def hessian_error(weight: Tensor, q: Tensor, scale: Tensor, hessian: Tensor) -> Tensor:
    """tr((W − Ŵ)H(W − Ŵ)ᵀ) in float64: W [r,c], q [..,r,c], scale [..,r], H [c,c] -> [..]."""
    e = weight.double() - q.double() * scale.double()[..., None]
    return ((e @ hessian.double()) * e).sum((-2, -1))


def triangle_of(h: Tensor, *, upper: bool = False) -> Tensor | None:
    """The factor, or None where it is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(h, upper=upper)
    return None if int(failed) or not bool(factor.isfinite().all()) else factor


def inverse_factor(hessian: Tensor) -> Tensor | None:
    """U upper triangular with UᵀU = H⁻¹, or None where H is not positive definite."""
    lower = triangle_of(hessian)
    return None if lower is None else triangle_of(torch.cholesky_inverse(lower), upper=True)


def reverse_factor(hessian: Tensor) -> Tensor | None:
    """V upper triangular with VVᵀ = H, which is U⁻¹, or None: one factorisation of H turned round."""
    lower = triangle_of(hessian.flip(0, 1))
    return None if lower is None else lower.flip(0, 1)


class Solved(NamedTuple):
    """One matrix."""

    q: Tensor  # int8 [r,c]
    scale: Tensor  # float16 [r]
    ratio: float  # its Hessian error over that of plain rounding under the same scale
    more: int  # times the damping asked for


@dataclass(frozen=True)
class Feedback:
    """What the error e_j of a column does to the later targets, columns in the order they are taken:
    t_k += Σ_j pull[k,j]·e_j for j < k. e_j is t_j − q_j, or (`reverse`) w_j − q_j of the weight itself."""

    order: Tensor  # [c]
    live: Tensor  # bool [c,1]: its input is not always zero
    pull: Tensor  # float64 [c,c]; what stands on and above the diagonal is not read
    costs: Tensor  # float64 [c]: tr(E(H + damping·I)Eᵀ) = Σ_j costs_j·Σ(t_j − q_j)²
    damping: Tensor  # float64, a scalar
    reverse: bool
    more: int  # times the damping asked for


def feedback(hessian: Tensor, config: Any, damp: float) -> Feedback | None:
    """Of H [c,c] under `damp` means of its diagonal. Where the factorisation fails, it is tried with ten and
    a hundred times as much; None where these fail too."""
    diagonal = hessian.diagonal().double()
    dead = diagonal == 0
    mean = diagonal[~dead].mean() if bool((~dead).any()) else torch.ones_like(diagonal[0])
    order = torch.arange(len(diagonal), device=diagonal.device)
    if config.act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    reverse = config.factor == "reverse"
    for more in (1, 10, 100):
        h = hessian.double()[order][:, order]
        h.diagonal()[dead[order]] = 1
        damping = damp * more * mean
        h.diagonal().add_(damping)
        factor = reverse_factor(h) if reverse else inverse_factor(h)
        if factor is not None:
            d = factor.diagonal()
            pull = (factor / d).T if reverse else -(factor / d[:, None]).T
            costs = d.square() if reverse else d.square().reciprocal()
            return Feedback(order, ~dead[order][:, None], pull.contiguous(), costs, damping, reverse, more)
    return None


def settle(t: Tensor, own: Tensor, q: Tensor, e: Tensor, pull: Tensor, qmax: int) -> None:
    """Rounds targets t [b,k,N] column by column into q and e = own − q; halves of more than LEAF columns
    reach each other by one product. pull [b,k,k]."""
    k = t.size(1)
    half = k // 2
    if k > LEAF:
        settle(t[:, :half], own[:, :half], q[:, :half], e[:, :half], pull[:, :half, :half], qmax)
        t[:, half:].baddbmm_(pull[:, half:, :half], e[:, :half])
        settle(t[:, half:], own[:, half:], q[:, half:], e[:, half:], pull[:, half:, half:], qmax)
        return
    for j in range(k):
        if j:
            t[:, j : j + 1].baddbmm_(pull[:, j : j + 1, :j], e[:, :j])
        torch.round(t[:, j], out=q[:, j]).clamp_(-qmax, qmax)
        torch.sub(own[:, j], q[:, j], out=e[:, j])


def solve_rows(
    weight: Tensor, scales: Tensor, system: list[Feedback], qmax: int, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """b matrices, columns first and all candidates side by side, in steps of the scale: weight float64
    [b,c,r] in their orders, scales [b,P,r] -> (q int8 [b,c,P,r], errors [b,P], squared errors [b,P])."""
    matrices, columns, _ = weight.shape
    s = scales.double()
    pull = torch.stack([f.pull for f in system])
    costs = torch.stack([f.costs for f in system])
    t = (weight[:, :, None] / s[:, None]).flatten(2)  # [b,c,N], N = P·r
    out = torch.empty(t.shape, dtype=torch.int8, device=t.device)
    errors = torch.zeros_like(t[:, 0])
    squares = torch.zeros_like(t[:, 0])
    for a in range(0, columns, block):
        b = min(a + block, columns)
        own = (weight[:, a:b, None] / s[:, None]).flatten(2)
        q = torch.empty_like(own)
        e = torch.empty_like(own)
        settle(t[:, a:b], own if system[0].reverse else t[:, a:b], q, e, pull[:, a:b, a:b], qmax)
        if b < columns:
            t[:, b:].baddbmm_(pull[:, b:, a:b], e)
        out[:, a:b] = q
        errors += (costs[:, None, a:b] @ (t[:, a:b] - q).square_())[:, 0]
        squares += own.sub_(q).square_().sum(1)
    errors = (errors.view_as(s) * s.square()).sum(-1)
    squares = (squares.view_as(s) * s.square()).sum(-1)
    damping = torch.stack([f.damping for f in system])[:, None]
    return out.view(matrices, columns, *s.shape[1:]), errors - damping * squares, squares


@torch.no_grad()
def gptq_batch(
    weights: list[Tensor], system: list[Feedback], scales: Tensor, bits: int, config: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices W [r,c] of one shape under scales [b,P,r] -> (q int8 [b,c,P,r], columns in each one's order;
    tr((W − Ŵ)H(W − Ŵ)ᵀ) and ‖W − Ŵ‖², the latter without dead columns, float64 [b,P])."""
    first = torch.stack([w.T[f.order] * f.live for w, f in zip(weights, system, strict=True)]).double()
    rows = max(1, at_once(first.device) // scales.size(1))
    parts = [
        solve_rows(w, s, system, 2 ** (bits - 1) - 1, config.block_size)
        for w, s in zip(first.split(rows, 2), scales.split(rows, 2), strict=True)
    ]
    q, errors, squares = zip(*parts, strict=True)
    return torch.cat(q, 3), torch.stack(errors).sum(0), torch.stack(squares).sum(0)


def at_once(device: torch.device) -> int:
    """Numbers that one operation rounds: enough to hide its start, few enough for the caches of a CPU."""
    return 4096 if device.type == "cpu" else 2**19


def in_place(q: Tensor, order: Tensor) -> Tensor:
    """q [c,..,r] in the order of solving -> [..,r,c]."""
    return q.movedim(0, -1)[..., torch.argsort(order)].contiguous()


def gptq_solve(weight: Tensor, hessian: Tensor, scales: Tensor, bits: int, config: Any) -> Tensor | None:
    """q int8 [P,r,c] of W [r,c] under each row of scales [P,r]; None if the Cholesky factorisation fails."""
    found = feedback(hessian, config, config.damp)
    if found is None:
        return None
    q, _, _ = gptq_batch([weight], [found], scales[None], bits, config)
    return in_place(q[0], found.order)


def spread(work: Callable[[Any], Any], parts: list[Any], device: torch.device) -> list[Any]:
    """work(part) of each part, in their order: on a CPU on as many threads as PyTorch has, each alone on its
    part, so that the numbers are those of one thread."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return [work(part) for part in parts]

    def alone(part: Any) -> Any:
        torch.set_num_threads(1)
        return work(part)

    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(alone, parts))
    finally:
        torch.set_num_threads(threads)


def solve_alike(
    jobs: Sequence[Job], hessians: Mapping[str, Tensor], config: Any, damp_of: Callable[[str], float]
) -> dict[str, Solved]:
    """Of matrices of one shape, by name; those are missing whose Cholesky fails."""
    c = config
    able: list[tuple[Job, Tensor, Feedback, Tensor]] = []
    for job in jobs:
        name, weight, bits, rule = job
        hessian = hessians[name]
        found = feedback(hessian, c, damp_of(name))
        if found is not None:
            w = weight.detach().to(hessian.device)
            scales = rule(w, bits, hessian)[None] if rule else clip_scales(w, bits, c.scale_floor)
            able.append((job, w, found, scales))
    if not able:
        return {}
    _, weights, system, scales = map(list, zip(*able, strict=True))
    q, errors, squares = gptq_batch(weights, system, torch.stack(scales), jobs[0][2], c)
    judged = squares if c.clip_rule == "mse" else errors
    out: dict[str, Solved] = {}
    for i, ((name, _, bits, _), w, found, candidates) in enumerate(able):
        best = int(judged[i].argmin())
        mine = in_place(q[i, :, best], found.order)
        plain = round_rows(w, candidates[best], bits)
        rounded = float(hessian_error(w, plain, candidates[best], hessians[name]))
        ratio = 1.0 if not rounded or torch.equal(mine, plain) else float(errors[i, best]) / rounded
        out[name] = Solved(mine.cpu(), candidates[best].cpu(), ratio, found.more)
    return out


def solve_all(
    jobs: Sequence[Job], hessians: Mapping[str, Tensor], config: Any, damp_of: Callable[[str], float]
) -> dict[str, Solved | None]:
    """Of matrices that have a Hessian, by name, those of one shape together; None: the Cholesky failed."""
    out: dict[str, Solved | None] = {}

    def solved_batch(batch: Sequence[Job]) -> dict[str, Solved]:
        return solve_alike(batch, hessians, config, damp_of)

    alike: dict[Any, list[Job]] = {}
    for job in jobs:
        if job[0] in hessians:
            alike.setdefault((job[1].shape, job[2], job[3] is None), []).append(job)
    batches: list[list[Job]] = []
    device = next((h.device for h in hessians.values()), torch.device("cpu"))
    for (shape, _, searched), group in alike.items():
        width = shape[0] * (len(CLIP_PERCENTILES) if searched else 1)
        size = max(1, at_once(device) // width)
        batches += [group[i : i + size] for i in range(0, len(group), size)]
    batches.sort(key=lambda batch: -len(batch) * batch[0][1].numel() * batch[0][1].size(1))
    for batch, found in zip(batches, spread(solved_batch, batches, device), strict=True):
        out |= {name: found.get(name) for name, *_ in batch}
    return out


def self_generated(model: Any, config: Any, *, rank: int, ranks: int) -> Iterator[Tensor]:
    """ids [B,T]: `self_sequences` sequences of `self_tokens` tokens in batches of SELF_BATCH, dealt out to
    the ranks in turn. The first token is drawn uniformly, each other one from softmax(logits / temperature).
    Batch i draws from a generator of its own: it is the same on one rank and on many. One forward of the
    whole prefix a token: no cache of keys and values; a GPU, which waits for its launches there, runs it for
    all batches at once."""
    device = model.tok_emb.device
    vocab_size = model.tok_emb.size(0)
    starts = range(0, config.self_sequences, SELF_BATCH)
    mine = range(rank, len(starts), ranks)
    for group in [mine] if device.type == "cuda" and mine else [[i] for i in mine]:
        generators = [torch.Generator().manual_seed(1019 + i) for i in group]
        rows = [min(SELF_BATCH, config.self_sequences - starts[i]) for i in group]
        first = [
            torch.randint(vocab_size, (n, 1), generator=g) for n, g in zip(rows, generators, strict=True)
        ]
        ids = torch.cat(first).to(device)
        while ids.size(1) < config.self_tokens:
            h = model.hidden(ids)[:, -1]
            shares = torch.softmax(model.logits(h).float().cpu() / config.temperature, dim=-1)
            drawn = [
                torch.multinomial(part, 1, generator=g)
                for part, g in zip(shares.split(rows), generators, strict=True)
            ]
            ids = torch.cat((ids, torch.cat(drawn).to(device)), dim=1)
        yield from ids.split(rows)


def entropy_bytes(q: Tensor) -> float:
    """Order-0 entropy of integers, bytes."""
    counts = torch.bincount(q.flatten().to(torch.int32) + 128).double()
    return float(-(counts * (counts.clamp_min(1) / q.numel()).log2()).sum() / 8)


@dataclass
class ByteSearch:
    """The least of the steps 0 … `last` whose file has at most `target` bytes, by few packings.

    `estimate` falls with the step; its distance from the packings made so far is what it is corrected by:
    anchored at the nearest of them, and its slope by the nearest two. A guess aims half of `slack` below the
    target, and while nothing fits lower by a share (CAUTION) of what the last one was wrong. Once something
    fits, a guess that took away less than half of what was left is followed by one that halves it. The search
    ends when a file spares at most `slack`, when one step fewer does not fit, or after `most` packings of
    which one fits; where nothing fits, when `last` was tried. A small file affords more than PACKINGS, and is
    brought to the edge, with no slack.
    """

    target: int
    last: int
    estimate: Callable[[int], float]  # bytes, up to what all steps share
    measure: Callable[[int], int]  # of the packed submission
    sizes: dict[int, int]  # step -> bytes, of packings made; one at least
    guessed: dict[int, int] = field(default_factory=dict[int, int])  # what was expected of them
    most: int = field(init=False)

    def __post_init__(self) -> None:
        self.most = max(PACKINGS, min(TRIES, CHEAP_BYTES // max(self.sizes.values())))

    @property
    def slack(self) -> int:
        return max(FINE_BYTES, self.target // FINE_SHARE) if self.most <= PACKINGS else -1

    def bounds(self) -> tuple[int, int | None]:
        """The greatest step below the second one that does not fit, or -1; the least that fits, or None."""
        fitting = min((step for step, size in self.sizes.items() if size <= self.target), default=None)
        large = [step for step, size in self.sizes.items() if size > self.target]
        return max((step for step in large if fitting is None or step < fitting), default=-1), fitting

    def expected(self, step: int) -> float:
        """Bytes of the step's file, by the estimate and two packings: beside the edge, or the nearest."""
        near, *others = sorted(self.sizes, key=lambda s: abs(self.sizes[s] - self.target))
        low, fitting = self.bounds()
        if fitting is not None and low >= 0:
            near = fitting
            others = [low]
        slope = 1.0
        for other in others:
            apart = self.estimate(near) - self.estimate(other)
            if apart:
                slope = min(2.0, max(0.2, (self.sizes[near] - self.sizes[other]) / apart))
                break
        return self.sizes[near] + slope * (self.estimate(step) - self.estimate(near))

    def first_below(self, size: float, low: int, high: int) -> int:
        """The least step from `low` to `high` that is expected to have at most `size` bytes, or `high`."""
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.expected(middle) <= size else (middle + 1, high)
        return low

    def wrong(self) -> int:
        """By how many bytes the last guess was, if its file does not fit."""
        last = [*self.sizes][-1]
        missed = last in self.guessed and self.sizes[last] > self.target
        return abs(self.sizes[last] - self.guessed[last]) if missed else 0

    def run(self) -> int:
        """The step; `last` where nothing fits. `sizes` then has its bytes."""
        width = 2 * self.last  # of what is left beside the edge, before the last guess
        while True:
            low, fitting = self.bounds()
            if fitting is None:
                if low >= self.last:
                    return self.last
            elif self.target - self.sizes[fitting] <= self.slack or fitting - low <= 1:
                return fitting
            elif len(self.sizes) >= self.most:
                return fitting
            high = self.last if fitting is None else fitting - 1
            beside = fitting is not None and low >= 0
            creeps = beside and 2 * (high - low) > width
            step = (low + 1 + high) // 2 if creeps else self.first_below(self.aim(), low + 1, high)
            if beside:
                width = high - low
            self.guessed[step] = round(self.expected(step))
            self.sizes[step] = self.measure(step)

    def aim(self) -> float:
        """Bytes that the next file should have."""
        spare = max(0, self.slack / 2)
        if self.bounds()[1] is None:
            late = max(0, len(self.guessed) - len(CAUTION) + 1)
            spare += 2**late * CAUTION[min(len(self.guessed), len(CAUTION) - 1)] * self.wrong()
        return self.target - spare

    def facts(self, step: int) -> dict[str, Any]:
        """Of the search that ended at `step`; where nothing fits, a finding."""
        found: dict[str, Any] = {"packings": len(self.sizes), "bytes_after": self.sizes[step]}
        if step in self.guessed:
            found["estimated_bytes"] = self.guessed[step]
        found["fits"] = self.sizes[step] <= self.target
        if not found["fits"]:
            least = min(self.sizes.values())
            found["finding"] = (
                f"target_bytes must be at least the bytes that can be reached, but got {self.target:,} and "
                f"{least:,}. Raise target_bytes, or store fewer bits or parameters."
            )
        return found
