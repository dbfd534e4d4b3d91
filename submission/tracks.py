"""shortfalls(evidence) -> sentences: every demand of the chosen track that the evidence does not meet.

| demand | record | non-record |
|---|---|---|
| every seed has a score, its log tells it, the clean process repeats it | yes | yes |
| bytes of the script and of each packed model | yes | yes |
| legality of the score: techniques, ledger, plausibility | yes | yes |
| seconds of training and evaluation | yes | no |
| better than the current record by 0.005 nats per token at p < 0.01 | yes | no |

Source: the challenge's README (submission process; non-record submissions). The limits are the challenge's;
for a record at another scale those of the study that the configuration is from.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from claims.confirm import MARGIN_NATS, RULE_P
from search.study.limits import Limit, Limits
from submission.clean import BPB_WITHIN, BYTES_WITHIN, unequal
from submission.evidence import SHOWN_LIMITS, Evidence, SeedRun, misread
from submission.significance import FEWEST
from techniques.config import Resolved

CHALLENGE = Limits(16_000_000, 600.0, 600.0)
PUBLISHED_DATA = "fineweb10B"  # begins the name of the challenge's export


@dataclass(frozen=True)
class Track:
    """What is demanded beside bytes, score and legality."""

    folder: str  # of records/, at the challenge's scale
    local: str  # anywhere else
    seconds: bool
    significance: bool


TRACKS = {
    "record": Track("track_10min_16mb", "local_record", seconds=True, significance=True),
    "non-record": Track("track_non_record_16mb", "local_non_record", seconds=False, significance=False),
}


def track_of(name: str) -> Track:
    """ValueError for one that there is not."""
    if name not in TRACKS:
        raise ValueError(f"A submission has --track {' or '.join(TRACKS)}, but got {name!r}.")
    return TRACKS[name]


def of_the_challenge(resolved: Resolved, track: str, hardware: str) -> bool:
    """Whether a run is measured as the challenge's are: all of its validation text, for the record track on
    8 H100."""
    config = resolved.config
    whole = PUBLISHED_DATA in config.data_path and not config.val_tokens
    return whole and (track != "record" or bool(re.match(r"8 x .*H100", hardware)))


def folder_of(resolved: Resolved, track: str, hardware: str) -> str:
    """Of records/."""
    told = track_of(track)
    return told.folder if of_the_challenge(resolved, track, hardware) else told.local


def forbidden(resolved: Resolved) -> Iterator[str]:
    """Techniques that no submission may contain, with the ruling."""
    for name, technique in resolved.techniques.items():
        verdict = technique.verdict()
        if not verdict.admitted("record"):
            yield f"{name} is {verdict.verdict} ({verdict.source})"


def shortfalls(e: Evidence) -> list[str]:
    """`what: its numbers`, in the order of the table; the clean process counts once it ran."""
    track = track_of(e.about.track)
    found = [*_scores(e), *_limits(e, track), *_legality(e)]
    if track.significance:
        found += _significance(e)
    return found + [f"clean process: {told}" for told in _repeats(e)]


def _scores(e: Evidence) -> Iterator[str]:
    for run in e.runs:
        if run.reason:
            yield f"score: seed {run.seed} has none ({run.reason})"
        elif told := misread(e.log_of(run), e.figures(run)):
            yield f"score: the log of seed {run.seed} does not tell it: {told}"


def _limits(e: Evidence, track: Track) -> Iterator[str]:
    for limit in SHOWN_LIMITS if track.seconds else SHOWN_LIMITS[:1]:
        for run in e.scored:
            if over := over_limit(e, run, limit):
                yield f"{'bytes' if limit.unit == 'bytes' else 'seconds'}: seed {run.seed}: {over}"


def over_limit(e: Evidence, run: SeedRun, limit: Limit) -> str:
    """`artifact, 331,000 of 310,000 bytes`; "" within it."""
    most = e.about.limits.of(limit)
    figure = float(e.figures(run).get(limit.figure) or 0.0)
    return limit.over(figure, most) if figure > most else ""


def _legality(e: Evidence) -> Iterator[str]:
    told = [*forbidden(e.resolved)]
    yield from (f"legality: {one}" for one in told)
    for run in e.scored:
        if run.result.get("record_legal") is not True and not told:
            found = "; ".join(run.result.get("findings") or ()) or "the run does not say that it is legal"
            yield f"legality: seed {run.seed}: {found}"


def _significance(e: Evidence) -> Iterator[str]:
    if e.test is None:
        yield "significance: no record was named (--against)"
        return
    if len(e.scored) < FEWEST:
        yield f"significance: {len(e.scored)} seeds have a score, at least {FEWEST} are needed"
    elif not e.test.holds:
        asked = f"{MARGIN_NATS} at p < {RULE_P} is asked"
        yield f"significance: {e.test.sentence()}; {asked}"


def _repeats(e: Evidence) -> Iterator[str]:
    by_seed = {run.seed: run for run in e.scored}
    for clean in e.clean:
        run = by_seed[clean.seed]
        for told in unequal(clean, run.result, len(e.script), exact=e.exact):
            yield f"seed {clean.seed}: {told}"
    own = e.runs[0].result.get("code_bytes") if e.runs else None
    if own and own != len(e.script):
        yield f"the study counted {own:,} bytes of code, the script has {len(e.script):,}"


def tolerance(e: Evidence) -> str:
    """What "equal" means of the clean process."""
    if e.exact:
        return "equal to the last bit: bytes, packed model (SHA-256), score to 8 digits"
    return f"equal within {BPB_WITHIN} BPB and {BYTES_WITHIN:.1%} of the packed model's bytes"


def scale(e: Evidence) -> str:
    """Where it was measured, in a sentence."""
    first = e.first
    part = f"{int(first.get('val_tokens') or 0):,} tokens of {e.data_name}'s validation split"
    whole = "all of it" if not first.get("proxy") else "a part of it"
    where = f"Measured on {e.about.hardware}, on {part} ({whole}), protocol `{first.get('protocol')}`."
    if of_the_challenge(e.resolved, e.about.track, e.about.hardware):
        return where
    return (
        f"{where} **This is not the challenge's scale** (8×H100, all of FineWeb's validation split): these "
        "figures compare with runs of the same data, protocol and hardware, and with no score of its board."
    )
