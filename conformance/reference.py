"""docs/techniques.md from the catalogue: `python -m conformance.reference` writes it, `--check` finds it
stale.

It comes from the technique files themselves: their docstrings, settings, spaces, costs and rulings; what was
measured comes from docs/technique_cost.md and studies/LOG.md.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from techniques import catalog
from techniques.base import SLOTS, Choice, Cost, Float, Int, Shape, Technique, claims
from techniques.config import Config

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "techniques.md"
LOG = ROOT / "studies" / "LOG.md"
MEASURED = ROOT / "docs" / "technique_cost.md"
POINTER = re.compile(r"\s*What we saw: studies/LOG\.md, ([^\n]+)\.$")  # the end of a file's docstring
# The shape that costs are told for: the 11-layer stack of the records.
FULL = dataclasses.replace(
    Config(), num_layers=11, mlp_mult=3.0, train_seq_len=2048, train_batch_tokens=786_432
).shape()
HEAD = """# Techniques

Written by `python -m conformance.reference` from the technique files; do not edit. Every technique is off by
default; `--name` turns it on, `--name.setting value` sets it, and the variable in the last column does both.
Costs are those of the default settings on the 11-layer stack (11 layers, width 512, vocabulary 1024,
sequences of 2048, 3-fold MLP); parameters are exact, the rest are the estimates of the search's pre-flight.
Track `record` admits `legal` and `legal-if-timed`; track `open` admits everything, labelled.

**Measured** is the row of [what a technique costs](technique_cost.md), at a proxy's scale and with the noise
that is told there, then the entries of [the log](../studies/LOG.md) that tell what a technique did. Where no
entry stands, this repository has not measured what the technique does to val_bpb.

"""


# arXiv:2607.01517's five areas, by our rooms
AREAS = {
    "quantization": ("compression", "quantization"),
    "architecture": ("attention", "block", "embedding", "head"),
    "tokenization": (),
    "training": ("averaging", "data", "optimizer", "schedule"),
    "evaluation": ("evaluation",),
}
# what of its 84 techniques is named where we could read of it -> ours, and what it says
NAMED = {
    "sliding-window evaluation (stride 64)": ("sliding_window", "0.032 BPB, for 16 times the forward passes"),
    "int6 with a straight-through estimator": (
        "late_qat, mixed_bits",
        "0.130 BPB over all submissions, little beside competitive stacks: the plainest case of shrinking",
    ),
    "GPTQ": ("gptq, gptq_lite", "with int6 and Brotli the reliable choice"),
    "Brotli": ("brotli_shuffle, per_group", "the same"),
    "ternary and binary weights": ("not here", "ternary neutral, binary negative"),
    "larger vocabularies (SP8192)": (
        "a setting (`vocab_size`) and its data",
        "with CaseOps in over 70 % of the last phase's submissions",
    ),
    "CaseOps": ("a form of the data (`caseops`)", "the same"),
    "n-gram blending (backoff, PPM)": (
        "token_tilt; phased_ttt.tilt (the normalised one-token form alone)",
        "the one family whose gain held among competitive submissions",
    ),
}
TAXONOMY = """## The field's taxonomy

"Parameter Golf: What Really Works?" (arXiv:2607.01517, July 2026) sorts 84 techniques of 1,430 scored
submissions into five areas, found by words in the pull requests; its effects are differences of means
between submissions with and without a technique, over all of them and again among competitive ones. The
list of the 84 could not be established: we found its abstract and summaries of it by others, which name
those in the second table. Which of ours are the other names is therefore open; the areas are mapped by
room. `lqer`, say, is quantization here, and may be counted elsewhere there.
"""


@dataclass(frozen=True)
class Page:
    """One technique and what its file says."""

    name: str
    room: str
    cls: type[Technique]
    prose: str  # the file's docstring

    @property
    def formula(self) -> str:
        return paragraphs(self.prose)[0]

    @property
    def rest(self) -> list[str]:
        """The other paragraphs, less the pointer to the log, which the page gives itself."""
        kept = [POINTER.sub("", p) for p in paragraphs(self.prose)[1:]]
        return [p for p in kept if p]

    @property
    def entries(self) -> list[str]:
        """The titles of the log's entries that the file points to."""
        found = POINTER.search(paragraphs(self.prose)[-1])
        return re.findall(r'"([^"]+)"', found[1]) if found else []


def paragraphs(prose: str) -> list[str]:
    """Blocks between blank lines; lines of prose joined, lists and indented lines as they are."""
    out: list[str] = []
    for block in re.split(r"\n\s*\n", prose.strip()):
        text, listed = "", False
        for line in block.splitlines():
            own = line.startswith((" ", "- ", "* ", "|"))
            gap = "\n" if own else "\n\n" if listed else " "
            text, listed = (text + gap + line if text else line), own
        out.append(text)
    return out


def pages() -> list[Page]:
    files = catalog.technique_files()
    return [
        Page(n, files[n].parent.name, cls, sys.modules[cls.__module__].__doc__ or "")
        for n, cls in catalog.metadata().items()
    ]


def limits(field: dataclasses.Field[Any]) -> str:
    """What the setting takes."""
    low, high, choices = (field.metadata[k] for k in ("low", "high", "choices"))
    if choices:
        return ", ".join(f"{c}" for c in choices)
    if isinstance(field.default, bool):
        return "0, 1"
    if low is None and high is None:
        return "any"
    return f"{'' if low is None else f'{low:,}'} … {'' if high is None else f'{high:,}'}".strip()


def searched(space: Float | Int | Choice | None) -> str:
    """The range that a study samples unless it says otherwise."""
    if space is None:
        return "no"
    if isinstance(space, Choice):
        return ", ".join(f"{o}" for o in space.options)
    step = f", step {space.step}" if isinstance(space, Int) and space.step != 1 else ""
    return f"{space.low} … {space.high}{', log' if space.log else ''}{step}"


def settings_table(page: Page) -> Iterator[str]:
    fields = dataclasses.fields(page.cls.Config)
    gates = [f"`{v}`" for v, to in page.cls.env.items() if to == "on"]
    if gates:
        yield f"Switched by {', '.join(gates)}.\n"
    if not fields:
        yield "No settings.\n"
        return
    yield "| setting | default | takes | searched | meaning | variable |"
    yield "|---|---|---|---|---|---|"
    for f in fields:
        names = ", ".join(f"`{v}`" for v, to in page.cls.env.items() if to == f.name)
        default = f"`{f.default!r}`".replace("|", "\\|")
        doc = str(f.metadata["doc"]).replace("|", "\\|")
        cells = (f"`{f.name}`", default, limits(f), searched(page.cls.space.get(f.name)), doc, names or "–")
        yield f"| {' | '.join(cells)} |"
    yield ""


def cost_of(page: Page) -> str:
    """One sentence: what the defaults add at full size."""
    try:
        technique, shape = page.cls(), FULL
        for needed in (catalog.metadata()[n]() for n in page.cls.requires):
            if "plan" in claims(needed):
                shape = dataclasses.replace(shape, plan=tuple(needed.plan(shape)(1.0)))
        technique.check(shape)
        cost = technique.cost(shape)
    except ValueError as error:
        return f"not told at the defaults ({error})"
    return "; ".join(cost_parts(cost, shape)) or "nothing that the pre-flight counts"


def cost_parts(cost: Cost, shape: Shape) -> Iterator[str]:
    if cost.params:
        yield f"{cost.params:,} parameters"
    if cost.flops_per_token:
        share = cost.flops_per_token / shape.flops_per_token()
        yield f"{cost.flops_per_token:,.0f} FLOPs a token ({share:+.2%} of a forward pass)"
    if cost.eval_passes:
        yield f"{cost.eval_passes:,.1f} more passes a scored token"
    if cost.artifact_bytes:
        yield f"{cost.artifact_bytes:,.0f} bytes of corrections before the codec"
    if cost.calibration_passes:
        yield f"{cost.calibration_passes:,.0f} calibration passes inside the training budget"


def relations(page: Page, every: Sequence[Page]) -> Iterator[str]:
    """With whom it cannot, must or does come together."""
    mine = set(claims(page.cls))
    for slot in (s for s in SLOTS if s in mine):
        rivals = [p.name for p in every if p.name != page.name and slot in claims(p.cls)]
        yield f"slot `{slot}`" + (f", so not with {', '.join(rivals)}" if rivals else "")
    excluded = dict(page.cls.conflicts)
    excluded |= {p.name: p.cls.conflicts[page.name] for p in every if page.name in p.cls.conflicts}
    yield from (f"not with {other}: {why}" for other, why in excluded.items())
    if page.cls.requires:
        yield f"needs {', '.join(page.cls.requires)}"
    yield from (f"`{field}` needs {other}" for field, other in page.cls.setting_requires.items())
    if page.cls.overrides:
        yield f"in place of the trainer's {', '.join(page.cls.overrides)}"
    if page.cls.after:
        yield f"stands behind {', '.join(page.cls.after)}"


@cache
def measured_rows() -> Mapping[str, list[str]]:
    """The cells of docs/technique_cost.md by technique."""
    rows = [
        line.split("|")[1:-1] for line in MEASURED.read_text(encoding="utf-8").splitlines() if "|" in line
    ]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in rows}


def log_entries() -> Mapping[str, str]:
    """The log's entries, whole, by title (without its date)."""
    text = LOG.read_text(encoding="utf-8")
    entries = [block.partition("\n") for block in text.split("\n## ")[1:]]
    return {head.partition(" · ")[2]: body for head, _, body in entries}


def measured(page: Page) -> str:
    """What this repository has seen of a technique."""
    said: list[str] = []
    if page.name in measured_rows():
        _, parameters, model_bytes, step, spread = measured_rows()[page.name]
        time = "not part of a step" if step == "–" else f"{step} a step ({spread})"
        said.append(f"{parameters} parameters, {model_bytes} model bytes, {time}")
    said += [f"log: {title}" for title in page.entries]
    return "; ".join(said) or "nothing yet"


def page_lines(page: Page, every: Sequence[Page]) -> Iterator[str]:
    rule = page.cls.legality
    admitted = "admitted" if rule.admitted("record") else "refused"
    yield f"### {page.name}\n"
    yield f"{(page.cls.__doc__ or '').strip().splitlines()[0]}\n"
    yield f"**Formula.** {page.formula}\n"
    for paragraph in page.rest:
        yield f"{paragraph}\n"
    yield from settings_table(page)
    seams = ", ".join(f"`{s}`" for s in claims(page.cls))
    yield f"- **Source.** {page.cls.reference}"
    where = f"`techniques/{page.room}/{page.name}.py`"
    yield f"- **Where.** {where}; seams {seams}; first stage `{page.cls.stage}`"
    yield f"- **Cost at full size.** {cost_of(page)}"
    yield f"- **Identity at the start.** {'yes' if page.cls.identity_at_init else 'no'}"
    yield f"- **Legality.** {rule.verdict}: {rule.source}. Track record: {admitted}; track open: admitted"
    yield f"- **Company.** {'; '.join(relations(page, every)) or 'goes with every other technique'}"
    yield f"- **Measured.** {measured(page)}\n"


def taxonomy(every: Sequence[Page]) -> Iterator[str]:
    """Our names by the field's areas, and its names by ours."""
    yield TAXONOMY
    yield "| area | ours |"
    yield "|---|---|"
    for area, rooms in AREAS.items():
        ours = ", ".join(p.name for p in every if p.room in rooms)
        yield f"| {area} | {ours or 'no technique: the data and `vocab_size` say it'} |"
    yield ""
    yield "| named there | ours | what is said of it |"
    yield "|---|---|---|"
    yield from (f"| {name} | {ours} | {said} |" for name, (ours, said) in NAMED.items())
    yield ""


def reference() -> str:
    """The whole file."""
    every = pages()
    lines = ["| technique | room | what it is | record track |", "|---|---|---|---|"]
    for p in every:
        what = (p.cls.__doc__ or "").strip().splitlines()[0]
        verdict = p.cls.legality.verdict
        lines.append(f"| [{p.name}](#{p.name}) | {p.room} | {what} | {verdict} |")
    lines.append("")
    lines += taxonomy(every)
    for room in sorted({p.room for p in every}):
        lines.append(f"## {room}\n")
        for page in (p for p in every if p.room == room):
            lines += page_lines(page, every)
    return HEAD + "\n".join(lines).rstrip() + "\n"


def main(argv: Sequence[str]) -> int:
    """Writes the file; with --check, exit status 1 when it is not what would be written."""
    text = reference()
    stale = not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text
    if "--check" in argv:
        if stale:
            print("docs/techniques.md is stale. Run: python -m conformance.reference", file=sys.stderr)
        return int(stale)
    TARGET.write_text(text, encoding="utf-8")
    print(f"{TARGET.relative_to(ROOT)}: {len(text.encode()):,} bytes, {len(pages())} techniques")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
