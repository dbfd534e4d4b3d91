"""Windows start at w = 0, r, 2r, … while w + S - r < N; window 0 scores all S positions, others their last r.

N positions, S tokens a window, r stride. Every position is scored exactly once, behind window 0 from at least
S - r + 1 tokens; only the last window may be cut, at N. Every scorer that slides uses these same windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

Window = tuple[int, int, int]  # start, first scored position, end (excluded)


def windows(num_positions: int, seq_len: int, stride: int) -> list[Window]:
    """Every window of a sliding evaluation. ValueError unless 1 <= stride <= seq_len."""
    if not 1 <= stride <= seq_len:
        raise ValueError(f"The stride must lie in 1 .. seq_len = {seq_len}, but got {stride}.")
    starts = range(
        0, max(1, num_positions - seq_len + stride), stride
    )  # one at least: N may be less than S - r
    return [(w, w + seq_len - stride if w else 0, min(w + seq_len, num_positions)) for w in starts]


def window_batches(found: Sequence[Window], size: int) -> Iterator[list[Window]]:
    """Neighbours of one form (same length, same number of unscored tokens), at most `size` together."""
    batch: list[Window] = []
    for window in found:
        start, first, end = window
        if batch:
            s, f, e = batch[0]
            if len(batch) == size or (end - start, first - start) != (e - s, f - s):
                yield batch
                batch = []
        batch.append(window)
    if batch:
        yield batch


def window_tensors(run: Any, batch: Sequence[Window]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(inputs [b,T], targets [b,T], context): the first `context` positions of each window are not scored."""
    start, first, end = batch[0]
    ids, targets = run.windows([w[0] for w in batch], end - start)
    return ids, targets, first - start


def write_window_nats(run: Any, batch: Sequence[Window], nll: torch.Tensor) -> None:
    """Nats [b, scored] into the ledger; one copy from the device a batch."""
    for (_, first, _), row in zip(batch, nll.detach().float().cpu(), strict=True):
        run.write(first, row)


def score_sliding(run: Any, found: Sequence[Window], batch_seqs: int) -> None:
    """Score these windows as the model stands, without gradient; the head sees scored positions only."""
    with torch.no_grad():
        for batch in window_batches(found, batch_seqs):
            ids, targets, context = window_tensors(run, batch)
            h = run.hidden(ids)[:, context:]
            write_window_nats(run, batch, run.nats(h, targets[:, context:]))
