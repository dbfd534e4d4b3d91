"""Checks of an evaluation technique, from outside: coverage, score-first, isolation, one forward.

Score-first is three detectors. *future*: change all tokens from p on, no score before p moves. *target
flip*: change the last target, which is no input, no other score moves. *normalisation*: try every token as
the target of one position, what they got must sum to 1. Settings that take documents in an order of their
own are held to it in that order, with the documents' bounds kept: the order may look at those (#1855), and
at nothing else.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import train_gpt
from conformance.lab import BOS, SEQ_LEN, VOCAB_SIZE, NotApplicable, Violation, perturb
from conformance.subject import Subject
from techniques.base import Verdict
from techniques.config import Resolved

TINY_VOCAB = 4  # small enough to try every target
LENGTH = 5 * SEQ_LEN + 17  # positions: several chunks of an adapting scorer, and a ragged tail
LEGAL = (Verdict.LEGAL, Verdict.LEGAL_IF_TIMED)


def require_scorer(subject: Subject) -> None:
    if not subject.enters("scorer"):
        raise NotApplicable("it is no scorer")


class Ordered(train_gpt.Evaluation):
    """Remembers in which order positions got their scores, and between which the model's weights moved."""

    def __init__(self, *args: Any):
        super().__init__(*args)
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


def score(subject: Subject, resolved: Resolved, tokens: Tensor) -> Ordered:
    """The ledger after the technique scored `tokens` [N + 1] with a fresh model, every parameter moved; made
    once for all checks."""
    tokens = tokens.to(torch.int32).cpu()
    key = resolved.hash(), tokens.numpy().tobytes()
    if key not in subject.scores:
        model = subject.lab.build(resolved)
        perturb(model)
        model.eval()
        run = Ordered(model, tokens, SEQ_LEN, 2, subject.lab.world)
        resolved.techniques[subject.name].scorer().score(run)
        subject.scores[key] = run
    return subject.scores[key]


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
    at three places and just behind the first two training steps, whose own tokens must all lie before."""
    if subject.technique.scores_by_document:
        return later_moves(subject)
    tokens = subject.lab.ids(1, LENGTH + 1)[0]
    first = score(subject, subject.resolved, tokens)
    for p in (SEQ_LEN // 2 + 1, 3 * SEQ_LEN, LENGTH - 5, *(first.order[at] + 1 for at in first.steps[:2])):
        changed = tokens.clone()
        changed[p:] = subject.lab.ids(1, LENGTH + 1 - p, seed=11)[0]
        moved = score(subject, subject.resolved, changed).nll[: p - 1] != first.nll[: p - 1]
        if bool(moved.any()):
            return f"tokens from {p} on changed and the score of token {int(moved.nonzero()[0]) + 1} moved"
    return ""


def later_moves(subject: Subject) -> str:
    """Change what is scored later, but no document's bounds: does an earlier score move? Tried at the
    same kinds of places."""
    tokens = subject.lab.ids(1, LENGTH + 1)[0]
    first = score(subject, subject.resolved, tokens)
    for cut in (*(int(share * LENGTH) for share in (0.2, 0.5, 0.8)), *first.steps[:2]):
        later = torch.tensor(first.order[cut:]) + 1
        later = later[(tokens[later] != BOS).cpu()].to(tokens.device)
        changed = tokens.clone()
        changed[later] = 2 + (tokens[later] + 7) % (VOCAB_SIZE - 2)
        moved = score(subject, subject.resolved, changed).nll != first.nll
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


DETECTORS = {"future": future_moves, "target flip": flip_moves, "normalisation": target_sums}


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
    """Legal settings pass every detector; a technique that is illegal must set one off, and so must at least
    one setting of a contested one: a detector that stays silent there detects nothing."""
    require_scorer(subject)
    seen: dict[str, tuple[Verdict, str]] = {}
    for label, one in subject.variants:
        verdict = one.technique.verdict().verdict
        found = "; ".join(f"{name}: {text}" for name, text in detect(one).items())
        if found and verdict in LEGAL:
            raise Violation(f"{label}{found}, but the verdict is {verdict}")
        if not found and verdict is Verdict.ILLEGAL:
            raise Violation(f"{label}the verdict is illegal, but no detector fires")
        seen[label or "smoke: "] = (verdict, found)
    contested = {label: found for label, (verdict, found) in seen.items() if verdict not in LEGAL}
    if contested and not any(contested.values()):
        raise Violation("the verdict is contested, but no detector fires under any setting")
    fired = [f"{label}{found}" for label, found in contested.items() if found]
    return "as its verdict says, a detector fires: " + "; ".join(fired) if fired else None


def null_settings(subject: Subject) -> list[Mapping[str, Any]]:
    """Settings that may switch the adaptation off: what the technique declares, else its settings at 0."""
    declared = getattr(subject.cls, "null", None)
    if declared is not None:
        return [declared]
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
    ("isolated scores", isolated_scores),
    ("one forward", one_forward),
)
