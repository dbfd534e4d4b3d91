"""Checks of an evaluation technique, from outside: coverage, score-first, batches, isolation, one forward,
and that what fails in it fails the run.

Score-first is four detectors. *future*: change all tokens from p on, no score before p moves; of a few chunks
scored two by two, and of twenty and more scored sixteen by sixteen. *target flip*: change the last target,
which is no input, no other score moves. *normalisation*: try every token as the target of one position, what
they got must sum to 1. *early*: the evaluation's own meter (trainer/scoring.py) saw no position trained on
before it had its score. Settings that take documents in an order of their
own are held to it in that order, with the documents' bounds kept: the order may look at those (#1855), and
at nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

import train_gpt
from conformance.lab import BOS, SEQ_LEN, VOCAB_SIZE, NotApplicable, Violation, perturb
from conformance.subject import Subject
from techniques.base import Verdict
from techniques.config import Resolved

TINY_VOCAB = 6  # small enough to try every target; two of them are no special tokens
LENGTH = 5 * SEQ_LEN + 17  # positions: several chunks of an adapting scorer, and a ragged tail
LONG = 22 * SEQ_LEN + 17  # positions: what begins behind the twelfth chunk shows, and batches of 16 are full
ROWS = (1, 2, 16)  # sequences side by side
BATCH_NATS = {"cpu": 2e-5, "cuda": 1e-3}  # float32 sums of other sizes; a leak of one token is far above
LEGAL = (Verdict.LEGAL, Verdict.LEGAL_IF_TIMED)


def require_scorer(subject: Subject) -> None:
    if not subject.enters("scorer"):
        raise NotApplicable("it is no scorer")


class Ordered(train_gpt.Evaluation):
    """Remembers in which order positions got their scores, and between which the model's weights moved."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.scorer: Any = None
        self.order: list[int] = []
        self.steps: list[int] = []  # places in `order`: inside of the first scores after a training step
        self.version = self.weights_version()

    def weights_version(self) -> int:
        return sum(p._version for p in self.model.parameters())

    def write(self, start: int, nll: Tensor) -> None:
        super().write(start, nll)
        if self.version != (version := self.weights_version()):
            self.version = version
            self.steps.append(len(self.order) + nll.numel() // 2)
        self.order += range(start, start + nll.numel())


def score(subject: Subject, resolved: Resolved, tokens: Tensor, rows: int = 2) -> Ordered:
    """The ledger after the technique scored `tokens` [N + 1] with a fresh model, every parameter moved, up to
    `rows` sequences side by side; made once for all checks."""
    tokens = tokens.to(torch.int32).cpu()
    key = resolved.hash(), rows, tokens.numpy().tobytes()
    if key not in subject.scores:
        run = open_scoring(subject, resolved, tokens, rows)
        with run.ledger.watching():
            run.scorer.score(run)
        subject.scores[key] = run
    return subject.scores[key]


def open_scoring(subject: Subject, resolved: Resolved, tokens: Tensor, rows: int = 2) -> Ordered:
    model = subject.lab.build(resolved)
    perturb(model)
    model.eval()
    run = Ordered(model, tokens.to(torch.int32).cpu(), SEQ_LEN, rows, subject.lab.world)
    run.scorer = resolved.techniques[subject.name].scorer()
    return run


def coverage(subject: Subject) -> None:
    """Every position is scored once, of whole sequences and of a ragged tail."""
    require_scorer(subject)
    for label, one in subject.variants:
        for length in (LENGTH - LENGTH % SEQ_LEN, LENGTH):
            run = score(one, one.resolved, one.lab.ids(1, length + 1)[0])
            missed = int((run.written == 0).sum())
            if missed:
                raise Violation(f"{label}{missed} of {length} positions were never scored")


def future_moves(subject: Subject) -> str:
    """Change all tokens from p on: does a score of a token before p change? What was seen, or nothing. Tried
    at some places and just behind some training steps, whose own tokens must all lie before."""
    if subject.technique.scores_by_document:
        return later_moves(subject)
    places = (SEQ_LEN // 2 + 1, 3 * SEQ_LEN, LENGTH - 5)
    late = (13 * SEQ_LEN + SEQ_LEN // 2, 19 * SEQ_LEN + 2)
    for length, rows, chosen in ((LENGTH, 2, places), (LONG, ROWS[-1], late)):
        tokens = subject.lab.ids(1, length + 1)[0]
        first = score(subject, subject.resolved, tokens, rows)
        for p in (*chosen, *(first.order[at] + 1 for at in steps_of(first))):
            changed = tokens.clone()
            changed[p:] = subject.lab.ids(1, length + 1 - p, seed=11)[0]
            moved = score(subject, subject.resolved, changed, rows).nll[: p - 1] != first.nll[: p - 1]
            if bool(moved.any()):
                return (
                    f"tokens from {p} on changed and the score of token {int(moved.nonzero()[0]) + 1} moved"
                )
    return ""


def steps_of(run: Ordered) -> list[int]:
    """Behind which training steps it is tried: the first two of a short stream; of a long one the first that
    comes late, and the last."""
    if run.num_positions < LONG:
        return run.steps[:2]
    late = [at for at in run.steps if at > LONG * 3 // 5]
    return sorted({*late[:1], *late[-1:]})


def later_moves(subject: Subject) -> str:
    """Change what is scored later, but no document's bounds: does an earlier score move? Tried at the
    same kinds of places."""
    for length, rows, shares in ((LENGTH, 2, (0.2, 0.5, 0.8)), (LONG, ROWS[-1], (0.6, 0.9))):
        tokens = subject.lab.ids(1, length + 1)[0]
        first = score(subject, subject.resolved, tokens, rows)
        for cut in (*(int(share * length) for share in shares), *steps_of(first)):
            later = torch.tensor(first.order[cut:]) + 1
            later = later[(tokens[later] != BOS).cpu()].to(tokens.device)
            changed = tokens.clone()
            changed[later] = 2 + (tokens[later] + 7) % (VOCAB_SIZE - 2)
            moved = score(subject, subject.resolved, changed, rows).nll != first.nll
            if bool(moved[first.order[:cut]].any()):
                return f"tokens that are scored later changed, and one of the first {cut} scores moved"
    return ""


def flip_moves(subject: Subject) -> str:
    """Change the last token, a target and no input: does the score of another one move?"""
    tokens = subject.lab.ids(1, LENGTH - LENGTH % SEQ_LEN + 1)[0]  # it ends a whole window
    flipped = tokens.clone()
    flipped[-1] = 2 + (int(tokens[-1]) + 5) % (VOCAB_SIZE - 2)
    a, b = (score(subject, subject.resolved, t).nll[:-1] for t in (tokens, flipped))
    if not bool((a != b).any()):
        return ""
    return f"the last target changed and the score of token {int((a != b).nonzero()[0]) + 1} moved"


def target_sums(subject: Subject) -> str:
    """Try every token as the target of one position: the probabilities that they got must sum to 1. A score
    that looks at its own target, or a mixture that is no distribution, sums to something else."""
    if subject.technique.scores_by_document:
        return ""  # a BOS as the target is another bound, and another order
    resolved = subject.resolve(vocab_size=TINY_VOCAB)
    for position in (LENGTH // 2, LENGTH - 3):
        tokens, total = subject.lab.ids(1, LENGTH + 1, vocab_size=TINY_VOCAB)[0], 0.0
        for target in range(TINY_VOCAB):
            tokens[position + 1] = target
            total += float((-score(subject, resolved, tokens).nll[position].double()).exp())
        if abs(total - 1) > 1e-4:
            return f"over all targets of position {position} the probabilities sum to {total:.5f}"
    return ""


def early_reads(subject: Subject) -> str:
    """Was a position trained on, or read before a step, while it had no score?"""
    run = score(subject, subject.resolved, subject.lab.ids(1, LONG + 1)[0], ROWS[-1])
    early = run.ledger.early & run.written.bool()
    if not bool(early.any()):
        return ""
    return (
        f"{int(early.sum())} positions, the first {int(early.nonzero()[0])}, were trained on without a score"
    )


DETECTORS = {
    "future": future_moves,
    "target flip": flip_moves,
    "normalisation": target_sums,
    "early": early_reads,
}


def detect(subject: Subject) -> dict[str, str]:
    """detector -> what it saw; nothing: they are silent."""
    seen = {name: detector(subject) for name, detector in DETECTORS.items()}
    return {name: text for name, text in seen.items() if text}


def isolated_scores(subject: Subject) -> None:
    """Change the inside of one document: no score outside of it moves, where a scorer claims that."""
    require_scorer(subject)
    claimed = False
    for label, one in subject.variants:
        if not one.technique.isolates_documents:
            continue
        claimed = True
        tokens = one.lab.ids(1, LENGTH + 1)[0]
        begins = [0, *(tokens[:-1] == BOS).nonzero().flatten().tolist(), LENGTH]
        lengths = [b - a for a, b in itertools.pairwise(begins)]
        document = max(range(len(lengths) - 1), key=lengths.__getitem__)
        begin, end = begins[document], begins[document + 1]
        changed = tokens.clone()
        changed[begin + 1 : end] = 2 + (tokens[begin + 1 : end] + 7) % (VOCAB_SIZE - 2)
        moved = score(one, one.resolved, changed).nll != score(one, one.resolved, tokens).nll
        moved[begin:end] = False
        if bool(moved.any()):
            raise Violation(
                f"{label}the document at {begin} … {end - 1} changed and the score of token "
                f"{int(moved.nonzero()[0]) + 1} moved"
            )
    if not claimed:
        raise NotApplicable("not claimed")


def score_first(subject: Subject) -> str | None:
    """Settings that claim a strict prefix pass every detector, whatever their verdict, and others must set
    one off: a detector that stays silent there detects nothing. What is legal must claim it; what is illegal
    cannot."""
    require_scorer(subject)
    fired: list[str] = []
    for label, one in subject.variants:
        verdict = one.technique.verdict().verdict
        claimed = one.technique.strict_prefix
        found = "; ".join(f"{name}: {text}" for name, text in detect(one).items())
        if found and verdict in LEGAL:
            raise Violation(f"{label}{found}, but the verdict is {verdict}")
        if not found and verdict is Verdict.ILLEGAL:
            raise Violation(f"{label}the verdict is illegal, but no detector fires")
        if found and claimed:
            raise Violation(f"{label}{found}, but a strict prefix is claimed")
        if not (found or claimed):
            raise Violation(f"{label}no strict prefix is claimed, but no detector fires")
        fired += [f"{label or 'smoke: '}{found}"] if found else []
    return "as it says, a detector fires: " + "; ".join(fired) if fired else None


def batches(subject: Subject) -> str:
    """The same nats with one sequence, two and sixteen side by side."""
    require_scorer(subject)
    worst = 0.0
    for label, one in subject.variants:
        tokens = one.lab.ids(1, LONG + 1)[0]
        resolved = one.resolved
        found = {f"{rows} sequences": score(one, resolved, tokens, rows) for rows in ROWS}
        for key in one.cls.batching:
            for rows in ROWS:
                other = Subject(one.lab, one.cls, known=one.known, changes={**one.changes, key: rows})
                found[f"{key} = {rows}"] = score(other, other.resolved, tokens, ROWS[-1])
        first = found[f"{ROWS[0]} sequences"].nll
        for what, run in found.items():
            moved = (run.nll - first).abs()
            worst = max(worst, float(moved.max()))
            if not worst <= BATCH_NATS[one.lab.device]:
                raise Violation(
                    f"{label}with {what} side by side the score of token {int(moved.argmax()) + 1} is "
                    f"{worst:.2g} nats away from that of a batch of one"
                )
    return f"at most {worst:.1g} nats apart"


class Planted(RuntimeError):
    """An error that the bench put there."""


def failing(subject: Subject) -> str:
    """An error inside the model, or inside an optimiser's step, ends the evaluation: nothing may catch it and
    hand in the scores of something else. What takes steps tells how many pieces it adapted to."""
    require_scorer(subject)
    tokens = subject.lab.ids(1, LENGTH + 1)[0]
    sound = open_scoring(subject, subject.resolved, tokens)
    calls = [0, 0]
    with breaking(sound, calls, None), sound.ledger.watching():
        sound.scorer.score(sound)
    adapted = sound.ledger.steps or sound.steps
    if adapted and not sound.scorer.facts.get("adapted"):
        raise Violation("it adapts, but its facts do not tell to how many pieces (`adapted`)")
    for place, what in enumerate(("forward", "optimiser's step")):
        for at in sorted({0, calls[place] // 2, calls[place] - 1} if calls[place] else ()):
            run = open_scoring(subject, subject.resolved, tokens)
            try:
                with breaking(run, [0, 0], (place, at)):
                    run.scorer.score(run)
            except Planted:
                continue
            raise Violation(f"{what} {at + 1} of {calls[place]} failed, and the scorer went on")
    return f"{calls[0]} forwards, {calls[1]} steps"


@contextlib.contextmanager
def breaking(run: Ordered, calls: list[int], where: tuple[int, int] | None) -> Iterator[None]:
    """Counts forwards and optimiser steps in `calls`; the one at `where` (which, number) fails."""

    def count(place: int) -> None:
        calls[place] += 1
        if where == (place, calls[place] - 1):
            raise Planted("planted")

    hidden = run.model.hidden

    def counted(ids: Tensor) -> Tensor:
        count(0)
        return hidden(ids)

    run.hidden = run.model.hidden = counted
    handle = register_optimizer_step_pre_hook(lambda *_: count(1))
    try:
        yield
    finally:
        handle.remove()
        run.hidden = run.model.hidden = hidden


def null_settings(subject: Subject) -> list[Mapping[str, Any]]:
    """Settings that may switch the adaptation off: what the technique declares, else its settings at 0."""
    if subject.cls.null is not None:
        return [subject.cls.null]
    zeros = {
        f.name: type(f.default)(0)
        for f in dataclasses.fields(subject.cls.Config)
        if f.metadata["low"] == 0 and type(f.default) in (int, float)
    }
    return [{}, *({name: zero} for name, zero in zeros.items()), zeros]


def one_forward(subject: Subject) -> None:
    """Without adaptation, each score is the plain forward's over some window that ends at or behind it."""
    require_scorer(subject)
    tokens = subject.lab.ids(1, LENGTH + 1)[0]
    plain = plain_nats(subject, tokens)
    worst = [torch.inf]
    for null in null_settings(subject):
        one = Subject(subject.lab, subject.cls, known=subject.known, changes={**subject.changes, **null})
        try:
            resolved = one.resolved
        except ValueError:  # these settings do not go together
            continue
        nll = score(one, resolved, tokens).nll
        worst.append(float((plain - nll[None]).abs().amin(0).max()))
        if worst[-1] <= 1e-4:
            return
    raise Violation(
        f"with its adaptation off its scores are {min(worst):.2g} nats away from the plain forward's "
        "(or no setting switches it off: declare `null`)"
    )


@torch.no_grad()
def plain_nats(subject: Subject, tokens: Tensor) -> Tensor:
    """[S, N] nats of every position under the plain forward of every window; infinite outside of it."""
    model = subject.lab.build(subject.without())
    perturb(model)
    model.eval()
    count = tokens.numel() - 1
    table = torch.full((count, count), torch.inf)
    padded = F.pad(tokens, (0, SEQ_LEN))  # what follows the end cannot reach a score before it
    index = torch.arange(count)[:, None] + torch.arange(SEQ_LEN)
    ids, targets = padded[index.to(tokens.device)], padded[index.to(tokens.device) + 1]
    nats = F.cross_entropy(model.logits(model.hidden(ids)).flatten(0, 1), targets.flatten(), reduction="none")
    inside = index < count
    rows = torch.arange(count)[:, None].expand_as(index)
    table[rows[inside], index[inside]] = nats.view(targets.shape).cpu()[inside]
    return table


CHECKS = (
    ("coverage", coverage),
    ("score-first", score_first),
    ("batches", batches),
    ("failing", failing),
    ("isolated scores", isolated_scores),
    ("one forward", one_forward),
)
