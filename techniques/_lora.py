"""Low-rank adapters of a document each: y + (α/r)·B(Ax) beside modules of the model, in its own forward.

Adapters enter by forward hooks, so that there is one forward: B = 0 is the plain model. R rows (documents of
a batch), r rank; A [R,r,in] ~ U(±1/√in), the same for every row; B [R,out,r] = 0.

A document runs from a BOS to the next. Its positions are scored in chunks from left to right, each within the
`context` tokens of the document that end where the chunk does. A last chunk that is not full ends there too
(`tail` = prefix), or where the document does (`document`, published: then more tokens stand before it, but
how many depends on where the document will end). After a chunk has its scores, one AdamW step on their mean
nats moves the document's own adapters, and nothing else (`grad_steps` of them on the same chunk). A tilt
(techniques/_windows.py) changes what is written, and no step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from techniques._adapt import chunk_of
from techniques._ttt import standing_still
from techniques._windows import Tilt

LORA_BOS_ID = 1  # <s> in every tokenizer of the challenge
Document = tuple[int, int]  # first position, positions


def documents(tokens: Tensor) -> list[Document]:
    """Every position of tokens [N + 1] in one document, in the stream's order; what stands before the first
    BOS is one too. A document's last position predicts the next one's BOS."""
    count = tokens.numel() - 1
    begins = (tokens[:count] == LORA_BOS_ID).nonzero().flatten().tolist()
    cuts = sorted({0, *begins, count})
    return [(a, b - a) for a, b in itertools.pairwise(cuts)]


def lora_places(model: Any, config: Any) -> list[tuple[Any, int, int]]:
    """(module, width in, width out) of every adapter in the blocks; `o` and `mlp` run beside the whole
    attention and the whole MLP, on the normed input of each."""
    places: list[tuple[Any, int, int]] = []
    for block in model.blocks:
        attn = block.attn
        if attn is None:
            places += [(block.mlp, block.mlp.fc.weight.size(1), block.mlp.fc.weight.size(1))] * config.mlp
            continue
        qv = [(attn.c_q, config.qv and config.q), (attn.c_v, config.qv and config.v)]
        chosen = [*qv, (attn.c_k, config.k)]
        places += [(m, m.weight.size(1), m.weight.size(0)) for m, on in chosen if on]
        width = attn.c_q.weight.size(1)
        places += [(m, width, width) for m, on in ((attn, config.o), (block.mlp, config.mlp)) if on]
    return places


class Adapters:
    """The adapters of R rows. `attached` puts them into the model; `logits` is its head with theirs."""

    def __init__(self, model: Any, config: Any, rows: int):
        self.model, self.scale, self.calls = model, config.alpha / config.rank, 0
        self.places = lora_places(model, config)
        sizes = [(i, o) for _, i, o in self.places]
        if config.head:
            sizes.append((model.skip_weights.size(1), model.tok_emb.size(0)))
        device, generator = model.tok_emb.device, torch.Generator().manual_seed(0)
        self.first: list[Tensor] = []
        for fan_in, _ in sizes:
            a = (2 * torch.rand(config.rank, fan_in, generator=generator) - 1) / math.sqrt(fan_in)
            self.first.append(a.to(device))
        self.a = [a.expand(rows, -1, -1).clone().requires_grad_() for a in self.first]
        self.b = [torch.zeros(rows, o, config.rank, device=device, requires_grad=True) for _, o in sizes]
        self.has_head = bool(config.head)

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.a, *self.b]

    @torch.no_grad()
    def reset(self, *, warm_a: bool) -> None:
        """For new documents: B = 0, and A as it was drawn (`warm_a`: as the row's last document left it)."""
        for a, b, first in zip(self.a, self.b, self.first, strict=True):
            b.zero_()
            if not warm_a:
                a.copy_(first.expand_as(a))

    def delta(self, i: int, x: Tensor) -> Tensor:
        """[n,T,out] that adapter i adds for the first n rows, x [n,T,in]."""
        a, b = (t[: x.size(0)].to(x.dtype) for t in (self.a[i], self.b[i]))
        return self.scale * ((x @ a.transpose(1, 2)) @ b.transpose(1, 2))

    @contextmanager
    def attached(self) -> Iterator[None]:
        def beside(i: int) -> Any:
            def hook(_module: Any, args: tuple[Any, ...], out: Tensor) -> Tensor:
                self.calls += 1
                return out + self.delta(i, args[0]).to(out.dtype)

            return hook

        handles = [m.register_forward_hook(beside(i)) for i, (m, _, _) in enumerate(self.places)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def logits(self, h: Tensor) -> Tensor:
        z = self.model.project(h)
        return self.model.cap(z + self.delta(len(self.places), h).to(z.dtype) if self.has_head else z)


class DocumentScorer:
    """Scores documents with adapters of their own; the base weights stand still. `steps` counts updates."""

    def __init__(self, run: Any, config: Any, tilt: Tilt | None = None):
        self.run, self.config, self.tilt, self.steps = run, config, tilt, 0
        self.context = config.context or run.seq_len
        self.adapters = self.lasting = Adapters(run.model, config, config.batch_docs)

    def score(self, batch: Sequence[Document]) -> None:
        """At most `batch_docs` documents, their longest first: a row that is done needs no more work. A batch
        that is not full has adapters that go with it, so `warm_a` takes nothing from it (#1855)."""
        c, rows = self.config, sorted(batch, key=lambda d: d[1])[::-1]
        full = len(rows) == c.batch_docs
        self.adapters = self.lasting if full else Adapters(self.run.model, c, len(rows))
        self.adapters.reset(warm_a=c.warm_a)
        optimizer = torch.optim.AdamW(
            self.adapters.parameters,
            lr=c.lr * c.lr_mult,
            betas=(c.beta1, c.beta2),
            eps=c.eps,
            weight_decay=c.weight_decay,
        )
        chunk = chunk_of(c, rows[0][1])
        base = [p for p in self.run.model.parameters() if p.requires_grad]
        with standing_still(base), self.adapters.attached():
            for first in range(0, rows[0][1], chunk):
                self.score_chunk([d for d in rows if d[1] > first], range(first, first + chunk), optimizer)
        assert self.adapters.calls or not self.adapters.places, "the forward never reached an adapter"

    def score_chunk(self, rows: Sequence[Document], chunk: range, optimizer: torch.optim.Optimizer) -> None:
        """The positions `chunk` of each row: their scores, then the steps on those that go on."""
        first, end = chunk.start, chunk.stop
        width = min(end, self.context)
        stops = [min(end, length) for _, length in rows]
        ends = stops if self.config.tail == "document" else [end] * len(rows)
        starts = [max(0, at - self.context) for at in ends]
        with torch.no_grad():
            pieces = [(d[0] + a, stop - a) for d, a, stop in zip(rows, starts, stops, strict=True)]
            ids, targets = padded_windows(self.run, pieces, width)
            places = first - torch.tensor(starts)[:, None] + torch.arange(len(chunk))
            places = places.clamp(max=width - 1).to(ids.device)  # [n, chunk]; behind a row's end: any
            t = targets.gather(1, places)
        goes_on = sum(length > end for _, length in rows)
        with torch.set_grad_enabled(goes_on > 0):
            logits = self.logits(ids, places)
            nats = nats_under(logits, t)
        told = nats.detach()
        if self.tilt is not None:
            at = torch.tensor([begin for begin, _ in rows])[:, None] + torch.arange(first, end)
            told = self.tilt.nats(logits.detach(), t, at)
        told = told.float().cpu()
        for (begin, _), stop, row in zip(rows, stops, told, strict=True):
            self.run.write(begin + first, row[: stop - first])
        for again in range(self.config.grad_steps if goes_on else 0):
            if again:
                nats = nats_under(self.logits(ids[:goes_on], places[:goes_on]), t[:goes_on])
            optimizer.zero_grad(set_to_none=False)
            nats[:goes_on].mean(1).sum().backward(inputs=self.adapters.parameters)
            optimizer.step()
            self.steps += 1

    def logits(self, ids: Tensor, places: Tensor) -> Tensor:
        """Logits [n, chunk, V] at `places` [n, chunk] of ids [n, width]."""
        h = torch.take_along_dim(self.run.model.hidden(ids), places[..., None], 1)
        return self.adapters.logits(h)


def nats_under(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats of targets [n,t] under logits [n,t,V]."""
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return nats.view(targets.shape)


def padded_windows(run: Any, pieces: Sequence[Document], width: int) -> tuple[Tensor, Tensor]:
    """(inputs, targets) [n, width], zeros behind each piece."""
    pairs = [run.window(*piece) for piece in pieces]
    ids, targets = (
        torch.stack([torch.nn.functional.pad(p[k], (0, width - len(p[k]))) for p in pairs]) for k in (0, 1)
    )
    return ids, targets


def batches_of(found: Sequence[Document], size: int) -> list[list[Document]]:
    return [list(found[i : i + size]) for i in range(0, len(found), size)]


def queue_of(found: Sequence[Document], size: int, order: str) -> list[tuple[int, list[Document]]]:
    """(number in the sorted order, documents) of each batch, in the order in which they are scored."""
    if order == "stream":
        return list(enumerate(batches_of(found, size)))
    rising = sorted(found, key=lambda d: d[1])  # ties in the stream's order
    return sorted(enumerate(batches_of(rising, size)), key=lambda batch: -batch[1][-1][1])


def phases_of(
    queue: Sequence[tuple[int, list[Document]]], prefix_docs: int, phases: int
) -> list[tuple[int, int]]:
    """(batches scored by then, documents trained on then) of each phase behind which something is scored."""
    ends: list[tuple[int, int]] = []
    scored = 0
    for number, (_, batch) in enumerate(queue[:-1], start=1):
        scored += len(batch)
        boundary = prefix_docs * (len(ends) + 1) // phases
        if len(ends) < phases and scored >= boundary:
            ends.append((number, boundary))
    return ends


def rows_of(stream: Tensor, begin: int, end: int, longest: int) -> list[tuple[int, int]]:
    """Positions begin … end - 1 of a stream of documents in pieces (first, length) of one document each."""
    cuts = (stream[begin:end] == LORA_BOS_ID).nonzero().flatten().tolist()
    bounds = sorted({begin, *(begin + cut for cut in cuts), end})
    return [
        (at, min(longest, stop - at))
        for start, stop in itertools.pairwise(bounds)
        for at in range(start, stop, longest)
    ]


def stream_of(run: Any, found: Sequence[Document]) -> Tensor:
    """The documents' tokens, each with the one that its last position predicts, one after the other."""
    with torch.enable_grad():  # the run notes what is trained on
        windows = [run.window(*document) for document in found]
    parts = [torch.cat((ids, targets[-1:])) for ids, targets in windows]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
