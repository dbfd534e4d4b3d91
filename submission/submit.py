"""submit(console, wish): `search.py submit`: the seeds that are missing, the demands of the track, a folder
that was run again in a clean process; or a refusal with every number that is short. check(console, folder)
runs a folder again.

    TO/TRACK/DATE_NAME/  train_gpt.py README.md submission.json requirements.txt train_seed*.log TOKENIZER

The folder is written beside its place and moved there whole. Runs, clean runs and the answer (verdict.json)
stay in HOME/runs/KIND/QUESTION/, so that what was killed or refused goes on from there.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bundle.lean import lean, lean_source
from bundle.one_file import resolve_layer
from claims.arms import Arm, arm_of_source
from claims.compare import say
from claims.runs import Place, alone, write_json
from search.common.console import counted
from search.common.machine import describe
from search.common.paths import ROOT, shown
from submission.clean import SCRIPT, Clean, Launch, run_clean, unequal
from submission.evidence import About, Evidence, read_runs
from submission.needs import caseops_module, requirements
from submission.question import (
    PUBLISHED,
    Question,
    Reference,
    Wish,
    arms_of_both,
    ask,
    place_of_runs,
    reference_of,
)
from submission.texts import Shipped, as_json, readme
from submission.tracks import CHALLENGE, folder_of, forbidden, of_the_challenge, shortfalls, track_of
from techniques.config import Resolved

SAID = "submission.json"
VERDICT = "verdict.json"
LONGEST = 200  # bytes of a name: with a date, and a mark beside its place, a folder's name has 255


def submit(console: Console, wish: Wish) -> Path:
    """The folder. ValueError for what a person must solve, and where a demand of the track does not hold."""
    arm = arm_of_source(wish.source, wish.session)
    reference = reference_of(wish)
    check_wish(wish, arm, reference)
    arms = arms_of_both(wish, arm, reference)
    place = place_of_runs(wish, arms)
    target = target_of(wish, arm.resolved(), hardware_of(place))
    if target.exists():
        raise ValueError(
            f"A submission is written once, but {shown(target)} is there. Give another --name or --to."
        )
    question = ask(console, wish, arms, reference, place)
    with alone(question.plan.folder):
        results = question.run(console)
        runs = read_runs(question.runner(), question.arm.label, results, question.seeds)
        resolved = resolved_of(question)
        evidence = Evidence(
            about=about(wish, question),
            resolved=resolved,
            runs=runs,
            script=lean(resolved),
            test=question.test(results, runs),
        )
        refuse(console, question, evidence)
        with staged(target, question.plan.hash) as folder:
            shipped = write_needs(folder, evidence, question)
            say(console, "the folder runs again in a clean process:")
            say(console, f"  {shipped.launch.line('DATA')}")
            evidence = replace(evidence, clean=clean_runs(folder, shipped.launch, evidence, question))
            refuse(console, question, evidence)
            write_texts(folder, evidence, shipped)
    say(console, told_of(evidence))
    console.print(str(shown(target)), highlight=False, markup=False, soft_wrap=True)
    return target


def check_wish(wish: Wish, arm: Arm, reference: Reference | None) -> None:
    """ValueError for what no run could mend."""
    track = track_of(wish.track)
    for option, value in (("name", wish.name), ("author", wish.author)):
        if not re.search(r"\w", value) or not value.isprintable():
            raise ValueError(
                f"A submission has a name and an author, each one line, but --{option} is {value!r}."
            )
    if told := list(forbidden(arm.resolved())):
        raise ValueError(
            f"No track takes {arm.label}: {'; '.join(told)}. Switch that off, and submit the rest."
        )
    if track.significance and reference is None:
        raise ValueError(
            "A record is better than the current one, but none is named. Name it with --against (a preset, "
            "a trial or a file, which run here on the same seeds; published:NAME or its val_bpb), or submit "
            "with --track non-record."
        )


def hardware_of(place: Place) -> str:
    """Of one run."""
    return describe(gpus=place.ranks if place.gpus else 0, threads=place.threads)


def target_of(wish: Wish, resolved: Resolved, hardware: str) -> Path:
    """TO/TRACK/DATE_NAME. ValueError where a published figure would stand beside another scale's."""
    local = not of_the_challenge(resolved, wish.track, hardware)
    if track_of(wish.track).significance and local and wish.against.startswith(PUBLISHED):
        raise ValueError(
            "A published score is of 8×H100 and all of FineWeb's validation split, but this is "
            f"{hardware} and {Path(resolved.config.data_path).name}: no record of one is a record of the "
            "other. Name something that runs here (--against PRESET, a trial or a file)."
        )
    name = re.sub(r"[^\w.+-]+", "_", wish.name).strip("_.")
    if (size := len(name.encode())) > LONGEST:
        raise ValueError(
            f"A submission's name is a folder's, of {LONGEST} bytes at most, but --name has {size}."
        )
    return wish.to / folder_of(resolved, wish.track, hardware) / f"{today()}_{name}"


def today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


def resolved_of(question: Question) -> Resolved:
    """What the first seed ran, its threads included: the script's settings."""
    path = question.runner().folder(question.arm.label, question.seeds[0]) / "config.json"
    return resolve_layer(json.loads(path.read_text(encoding="utf-8")))


def about(wish: Wish, question: Question) -> About:
    session = wish.session() if wish.source.isdecimal() else None
    place = question.place
    hardware = hardware_of(place)
    scale = of_the_challenge(question.arm.resolved(), wish.track, hardware)
    own = session is not None and not scale and track_of(wish.track).seconds
    return About(
        name=wish.name,
        author=wish.author,
        github_id=wish.github_id or wish.author,
        date=today(),
        track=wish.track,
        preset=question.arm.preset,
        where=f"trial {wish.source} of study {session.study.name}" if session else Path(wish.source).name,
        plan=question.plan.hash,
        limits=session.study.limits if session and own else CHALLENGE,
        hardware=hardware,
        ranks=place.ranks,
        threads=question.arm.resolved().config.num_threads or place.threads,
    )


def refuse(console: Console, question: Question, e: Evidence) -> None:
    """Keeps what was found; ValueError where a demand does not hold."""
    found = shortfalls(e)
    kept = {"holds": not found, "shortfalls": found, "track": e.about.track, "seeds": list(question.seeds)}
    kept |= {"test": e.test.sentence() if e.test else None, "clean": len(e.clean)}
    write_json(question.plan.folder / VERDICT, kept)
    if not found:
        return
    for line in found:
        say(console, f"  {line}")
    where = shown(question.plan.folder)
    raise ValueError(
        f"Nothing was written: the track {e.about.track} asks for more "
        f"({counted(len(found), 'demand')} above). The runs are kept in {where}."
    )


@contextmanager
def staged(target: Path, mark: str) -> Generator[Path]:
    """A folder beside `target`, which becomes it; gone where anything is raised."""
    folder = target.with_name(f".{target.name}.{mark}")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_needs(folder: Path, e: Evidence, question: Question) -> Shipped:
    """The script and what it needs."""
    config = e.resolved.config
    tokenizer = ROOT / config.tokenizer_path
    data = ROOT / config.data_path
    (folder / SCRIPT).write_bytes(e.script)
    shutil.copyfile(tokenizer, folder / tokenizer.name)
    (folder / "requirements.txt").write_text(requirements(lean_source(e.resolved)), encoding="utf-8")
    files = {
        SCRIPT: f"the script, {len(e.script):,} bytes: trains, packs and scores; it unpacks itself",
        SAID: "the figures for a machine",
        "requirements.txt": "what it imports, at the versions that ran",
        tokenizer.name: "the tokenizer",
        "train_seed*.log": "the log of each seed",
    }
    sidecars = sorted(path.name for path in data.glob("fineweb_val_bytes_*.bin"))
    if sidecars:
        (folder / "caseops.py").write_text(caseops_module(), encoding="utf-8")
        files["caseops.py"] = "the transform of the data, which can be undone exactly"
    place = question.place
    launch = Launch(
        data=data,
        tokenizer=tokenizer.name,
        ranks=place.ranks,
        threads=e.about.threads,
        gpus=place.gpus[0] if place.gpus else "",
        timeout_s=place.timeout_s,
    )
    return Shipped(launch, files, sidecars)


def clean_runs(folder: Path, launch: Launch, e: Evidence, question: Question) -> list[Clean]:
    """The first seed, and each whose kept run took over a stage: its log is not whole."""
    seeds = [run.seed for k, run in enumerate(e.runs) if k == 0 or run.result.get("reused")]
    keep = question.plan.folder / "clean"
    try:
        return [run_clean(folder, launch, s, own_seed=s == e.runs[0].seed, keep=keep) for s in seeds]
    except ValueError as error:
        raise ValueError(f"Nothing was written: {error}.") from error


def write_texts(folder: Path, e: Evidence, shipped: Shipped) -> None:
    for run in e.runs:
        (folder / f"train_seed{run.seed}.log").write_text(e.log_of(run), encoding="utf-8")
    (folder / "README.md").write_text(readme(e, shipped), encoding="utf-8")
    launch = shipped.launch
    again = {
        "tokenizer": launch.tokenizer,
        "ranks": launch.ranks,
        "threads": launch.threads,
        "exact": e.exact,
    }
    write_json(folder / SAID, as_json(e) | {"reproduction": again})


def told_of(e: Evidence) -> str:
    mean, sd = e.mean_sd("val_bpb")
    spread = f" ± {sd:.4f}" if len(e.scored) > 1 else ""
    told = f"; {e.test.sentence()}" if e.test else ""
    return (
        f"val_bpb {mean:.4f}{spread} on {counted(len(e.scored), 'seed')}, the clean process repeats it{told}"
    )


def check(console: Console, folder: Path) -> None:
    """Runs a folder again and compares it with its own submission.json; the data are DATA_PATH's, else the
    project's of that name. ValueError for every difference."""
    try:
        said: Any = json.loads((folder / SAID).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"A submission has a {SAID}, but {folder} has none that can be read.") from error
    try:
        data = Path(os.environ.get("DATA_PATH") or ROOT / "data" / "datasets" / str(said.get("dataset")))
        again = said["reproduction"]
        launch = Launch(data.absolute(), again["tokenizer"], again["ranks"], again["threads"])
        seed = said["seeds"][0]
        result = said["seed_results"][str(seed)]
        code_bytes = said["bytes_code"]
        exact = again["exact"]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"A folder is checked by what `search.py submit` wrote of how to run it again, but "
            f"{folder / SAID} does not say that ({type(error).__name__}: {error})."
        ) from None
    try:
        clean = run_clean(folder, launch, seed, own_seed=True)
        found = unequal(clean, result, code_bytes, exact=exact)
        if found:
            raise ValueError("; ".join(found))
    except ValueError as error:
        raise ValueError(f"{folder} does not give what it says: {error}.") from None
    say(console, f"{folder}: seed {seed} again, equal: val_bpb {clean.val_bpb:.8f}, {clean.sha256[:16]}…")
