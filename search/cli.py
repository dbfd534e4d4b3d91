"""The command line: `search.py --trials 200` runs a study; `status`, `best`, `show N`, `costs`, `effects`,
`report`, `dashboard` and `export` read it; `compare`, `confirm`, `ablate` and `submit` train on fresh
seeds; `scan` drafts a study.

Exit status: 0 done; 2 something to solve first, one `error: ...` line on stderr; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.common.console import clear_errors, printed
from search.common.options import SAMPLERS, RunOptions, StudyOptions, WorkerSpec, names_in
from search.common.paths import DEFAULT_STUDY, from_here
from search.request import (
    AS_TABLES,
    OF_SHELF,
    OF_STUDY,
    CsvOption,
    FromOption,
    HomeOption,
    JsonOption,
    NicenessOption,
    NoConfirmOption,
    NoForkOption,
    Request,
    RunsOption,
    ScriptOption,
    SeedsOption,
    StorageOption,
    StudyOption,
    app,
    command,
)

if TYPE_CHECKING:
    from rich.console import Console

    from search.session.session import Session
    from search.session.shelf import Shelf


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    trials: Annotated[int, typer.Option(min=0, help="Finished trials that the study shall have.")] = 200,
    study: StudyOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trials at once. [default: GPUs, else cores]")
    ] = None,
    storage: StorageOption = None,
    home: HomeOption = None,
    trainer: Annotated[
        Path | None, typer.Option(help="A script that takes environment variables; see docs/any_trainer.md.")
    ] = None,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Go on with other code or hardware than the study began with.")
    ] = False,
    sampler: Annotated[
        str,
        typer.Option(help=f"{', '.join(SAMPLERS)} (docs/search_efficiency.md). [default: as the study says]"),
    ] = "",
    earlier: FromOption = "",
    engine: Annotated[str, typer.Option(help="Who runs the workers: local, ray or slurm.")] = "local",
    engine_option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for the engine, any number of times.")
    ] = None,
    cache: Annotated[
        str, typer.Option(help="Folder of finished stages, or `off`. [default: HOME/runs/.cache]")
    ] = "",
    cache_size: Annotated[str, typer.Option(help="Of that folder at most; the oldest go first.")] = "10GB",
    cache_shared: Annotated[
        str, typer.Option(help="Where machines share stages: a folder or s3://bucket/prefix.")
    ] = "",
    niceness: NicenessOption = 0,
    no_confirm: NoConfirmOption = False,
    no_fork: NoForkOption = False,
    csv: CsvOption = False,
    json: JsonOption = False,
) -> None:
    """Sample, train, prune and rank until the study has TRIALS finished trials. Run it again to go on."""
    context.obj = options = StudyOptions(study, storage, home)
    if context.invoked_subcommand is not None:
        return
    folder = Path(cache) if cache else options.home_folder / "runs" / ".cache"
    worker = WorkerSpec(
        study=study or DEFAULT_STUDY,
        home=options.home_folder,
        target=trials,
        trainer=trainer,
        sampler=sampler,
        mixed=mixed,
        cache=None if trainer or cache == "off" else folder.absolute(),
        cache_size=cache_size,
        cache_shared=cache_shared,
        niceness=niceness,
        fork=not no_fork,
    )
    with clear_errors(), printed(csv=csv, json=json) as console:
        from search.run import run_study

        options_ = RunOptions(worker, storage, workers, names_in(earlier), engine, tuple(engine_option or ()))
        run_study(options_, None if no_confirm else functools.partial(confirm_end, options_), console)


def confirm_end(options: RunOptions, console: Console, session: Session) -> None:
    """What [confirm] of a study asks for."""
    from claims.confirm import confirm_at_end

    if options.engine == "local":
        confirm_at_end(console, session, workers=options.workers, trainer=options.worker.trainer)
    else:
        console.print("[confirm] runs on one machine: start `python search.py confirm` there.", markup=False)


@command(OF_STUDY | AS_TABLES)
def status(request: Request) -> None:
    """How far the study is, what failed and why. Then what a trial costs beside its work."""
    from search.report.status import print_status

    request.read(print_status)


@command(OF_STUDY | AS_TABLES)
def best(
    request: Request,
    top: Annotated[int, typer.Option(min=1, help="Rows of the leaderboard.")] = 10,
) -> None:
    """The leaderboard, and the command that repeats the best trial."""
    from search.report.leaderboard import print_leaderboard

    request.read(lambda console, session: print_leaderboard(console, session, top=top))


@command(OF_STUDY | AS_TABLES)
def show(
    number: Annotated[int, typer.Argument(metavar="N", help="The trial's number.")],
    request: Request,
) -> None:
    """Everything about trial N."""
    from search.report.trial import print_trial

    request.read(lambda console, session: print_trial(console, session, number))


@command(OF_STUDY | AS_TABLES)
def costs(request: Request) -> None:
    """Predicted bytes and seconds against measured ones. Errors, bias, how often the bound held."""
    from search.report.costs import print_costs

    request.read(print_costs)


@command(OF_STUDY | AS_TABLES)
def effects(
    request: Request,
    top: Annotated[int, typer.Option(min=1, help="Rows of each table.")] = 15,
) -> None:
    """By how much each technique and setting moves val_bpb. With what confidence, and which pairs clash."""
    from search.report.effects import print_effects

    request.read(lambda console, session: print_effects(console, session, top=top))


@command(OF_STUDY)
def report(
    request: Request,
    to: Annotated[
        Path | None,
        typer.Option(help="A file: .html, .md or .json. [default: HOME/runs/STUDY/report.html]"),
    ] = None,
    dollars_per_gpu_hour: Annotated[
        float | None, typer.Option(min=0.0, help="What an hour of a GPU costs. [default: the study's]")
    ] = None,
) -> None:
    """The study as one offline page to read and to send. Or as Markdown, or JSON."""

    def write(console: Console, session: Session) -> None:
        from pages.report import write_report

        path = write_report(session, to, dollars_per_gpu_hour=dollars_per_gpu_hour)
        console.print(str(to or from_here(path)), soft_wrap=True, highlight=False, markup=False)

    request.read(write)


@command(OF_STUDY)
def dashboard(
    request: Request,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0: any free one.")] = 8080,
) -> None:
    """optuna-dashboard for this study and its report, live, on this machine only. For who has the address."""
    with clear_errors():
        from pages.live import Live
        from search.report.dashboard import serve

        session = request.session()
        if session.note:
            print(session.note)
        folder = session.folders.artifacts
        serve(
            session.url,
            session.study.name,
            port=port,
            artifact_dir=folder,
            live=functools.partial(Live, session),
        )


@command(OF_SHELF | AS_TABLES)
def studies(
    every: Annotated[bool, typer.Option("--all", help="Archived ones too.")] = False,
    *,
    request: Request,
) -> None:
    """Every study of the database. Its trials, its best, when it last ran."""

    def show_all(console: Console, shelf: Shelf) -> None:
        from search.report.studies import print_studies

        print_studies(console, shelf, every=every)

    request.shelf(show_all)


@command(OF_SHELF | AS_TABLES)
def leaderboard(
    top: Annotated[int, typer.Option(min=1, help="Trials of each study.")] = 3,
    every: Annotated[bool, typer.Option("--all", help="Archived studies too.")] = False,
    *,
    request: Request,
) -> None:
    """The best of every study, of comparisons, and published results. By protocol, each with its verdict."""

    def show_board(console: Console, shelf: Shelf) -> None:
        from claims.board import print_board

        print_board(console, shelf.stored(), shelf.home, top=top, every=every)

    request.shelf(show_board)


@command(OF_SHELF)
def rename(old: str, new: str, request: Request) -> None:
    """Gives a study another name, and its folder. Then set that `name` in its file."""

    def rename_it(console: Console, shelf: Shelf) -> None:
        shelf.rename(old, new)
        console.print(f'{old} is {new} now. Set name = "{new}" in its file.', highlight=False, markup=False)

    request.shelf(rename_it)


@command(OF_SHELF)
def archive(
    name: str,
    undo: Annotated[bool, typer.Option("--undo", help="Show it again.")] = False,
    *,
    request: Request,
) -> None:
    """Hides a study from the list of studies. Nothing of it is lost."""

    def archive_it(console: Console, shelf: Any) -> None:
        shelf.archive(name, undo=undo)
        told = f"{name} is listed again." if undo else f"{name} is archived; --undo lists it again."
        console.print(told, highlight=False, markup=False)

    request.shelf(archive_it)


@command(OF_SHELF)
def delete(
    name: str,
    yes: Annotated[bool, typer.Option("--yes", help="Without it, only what would go is told.")] = False,
    *,
    request: Request,
) -> None:
    """Deletes a study, its trials and its folder."""

    def delete_it(console: Console, shelf: Shelf) -> None:
        console.print(
            f"deleted: {shelf.delete(name, sure=yes)}", highlight=False, soft_wrap=True, markup=False
        )

    request.shelf(delete_it)


@command(OF_STUDY | AS_TABLES)
def diff(
    first: Annotated[int, typer.Argument(metavar="A", help="A trial's number.")],
    second: Annotated[int, typer.Argument(metavar="B", help="Another's.")],
    request: Request,
) -> None:
    """What two trials differ in."""
    from search.report.studies import print_diff

    request.read(lambda console, session: print_diff(console, session, first, second))


@app.command()
def scan(
    script: Annotated[Path, typer.Argument(help="A training script; read, and without --try never run.")],
    out: Annotated[Path | None, typer.Option(help="The study file to write. [default: print it]")] = None,
    tries: Annotated[
        int,
        typer.Option("--try", min=0, help="Runs so many random draws, one step each; drops what crashes."),
    ] = 0,
    try_seconds: Annotated[float, typer.Option(min=1.0, help="Of each of these runs at most.")] = 60.0,
) -> None:
    """Draft a study from the settings that a script takes. See docs/any_trainer.md."""
    with clear_errors():
        from search.trainers.foreign import draft

        if tries and out is None:
            raise ValueError("--try edits the draft, but there is no --out that it is written to. Add it.")
        print(draft.write(script, out), end="")
        if tries and out is not None:
            from readers.scan import scan as scan_script
            from search.workers.tries import try_draft

            try_draft(out, scan_script(script), tries, timeout_s=try_seconds)


@command(OF_STUDY)
def export(
    to: Annotated[Path, typer.Option(help="Folder that the files are written to.")],
    trial: Annotated[int | None, typer.Option(help="A trial of the study.")] = None,
    preset: Annotated[str, typer.Option(help="A preset of studies/presets.")] = "",
    config: Annotated[Path | None, typer.Option(help="A configuration file, JSON or TOML.")] = None,
    format: Annotated[
        str,
        typer.Option(
            help="lean: what is submitted and what a study counts, the smallest file that trains, packs and "
            "scores it; of the environment it hears DATA_PATH, TOKENIZER_PATH and SEED. script: one to read "
            "and to change, with every setting on its command line."
        ),
    ] = "lean",
    *,
    request: Request,
) -> None:
    """One configuration as a self-contained train_gpt.py. It has only the techniques that are on."""
    with clear_errors():
        from bundle import lean, one_file
        from search.report.trial import configuration_of, shortcoming
        from techniques.config import read_layer

        if sum(x is not None for x in (trial, preset or None, config)) != 1:
            raise ValueError("An export names one of --trial N, --preset NAME and --config FILE.")
        if format not in ("script", "lean"):
            raise ValueError(f"An export has --format lean or --format script, but got {format!r}.")

    def write(resolved: one_file.Resolved) -> None:
        path = (lean.export_lean if format == "lean" else one_file.export)(resolved, to)
        on = ", ".join(resolved.techniques) or "no technique"
        print(f"{path}: {path.stat().st_size:,} code bytes, {on}")

    def write_trial(session: Session, number: int) -> None:
        write(configuration_of(session, number))
        if told := shortcoming(session, number):
            print(told)

    if trial is None:
        with clear_errors():
            write(one_file.resolve_layer(read_layer(config) if config else {"preset": preset}))
    else:
        request.read(lambda _, session: write_trial(session, trial))


@command(OF_STUDY | AS_TABLES)
def compare(
    what: Annotated[
        list[str] | None,
        typer.Argument(help="smear_gate, smear_gate.mode=previous,average, xsa.last_n=1,3 or A.json B.json"),
    ] = None,
    trial: Annotated[list[int] | None, typer.Option(help="A trial of the study, twice for two.")] = None,
    base: Annotated[str, typer.Option(help="A preset, a file or a trial. [default: laptop]")] = "",
    seeds: SeedsOption = 12,
    within: Annotated[float, typer.Option(min=0.0, help="Bits per byte that count as none.")] = 0.01,
    workers: RunsOption = None,
    trainer: ScriptOption = None,
    no_fork: NoForkOption = False,
    *,
    request: Request,
) -> None:
    """Does it help? Both arms on the same fresh seeds, until the answer is clear (docs/claims.md)."""
    with clear_errors(), request.told() as console:
        from claims.compare import Asked
        from claims.compare import compare as compare_arms
        from search.study.load import find_study

        given = request.given
        asked = Asked(
            words=tuple(what or ()),
            trials=tuple(trial or ()),
            base=base,
            seeds=seeds,
            within=within,
            workers=workers,
            home=given.home_folder,
            trainer=trainer,
            fork=not no_fork,
            study=find_study(given.study) if given.study else None,
            session=functools.cache(request.session),
        )
        compare_arms(console, asked)


@command(OF_STUDY | AS_TABLES)
def confirm(
    top: Annotated[int, typer.Option(min=1, max=10, help="Feasible trials, as `best` ranks them.")] = 3,
    against: Annotated[str, typer.Option(help="A preset, a file or a trial. [default: the start]")] = "",
    seeds: SeedsOption = 16,
    workers: RunsOption = None,
    trainer: ScriptOption = None,
    no_fork: NoForkOption = False,
    *,
    request: Request,
) -> None:
    """A study's best again on fresh seeds, until it is clear who is best; `best` ranks by it from then on."""
    with clear_errors(), request.told() as console:
        from claims.compare import Asked
        from claims.confirm import confirm as confirm_trials

        given = request.given
        home = given.home_folder
        asked = Asked(seeds=seeds, workers=workers, home=home, trainer=trainer, fork=not no_fork)
        confirm_trials(console, request.session(), asked, top=top, against=against)


@command(OF_STUDY | AS_TABLES)
def ablate(
    trial: Annotated[int | None, typer.Option(help="A trial of the study.")] = None,
    preset: Annotated[str, typer.Option(help="A preset of studies/presets.")] = "",
    base: Annotated[str, typer.Option(help="A configuration file.")] = "",
    out: Annotated[str, typer.Option(help="Techniques to take away: all, none or NAME,NAME.")] = "all",
    add: Annotated[
        str,
        typer.Option(
            help="Techniques to add: none, a number of the study's likeliest, all that fit or NAME,NAME. "
            "[default: of a trial, 3; else none]"
        ),
    ] = "",
    pairs: Annotated[int, typer.Option(min=0, help="Pairs that matter, at most.")] = 3,
    against: Annotated[
        str, typer.Option(help="Whose model the score is held against. [default: what it starts from]")
    ] = "",
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Instead: add the best candidate, round by round.")
    ] = False,
    candidates: Annotated[
        str, typer.Option(help="Of --greedy: all or NAME,NAME. [default: the study's likeliest 6]")
    ] = "",
    minutes: Annotated[
        float | None, typer.Option(min=0.0, help="No run starts that would end later.")
    ] = None,
    seeds: SeedsOption = 16,
    within: Annotated[float, typer.Option(min=0.0, help="Bits per byte that count as none.")] = 0.01,
    workers: RunsOption = None,
    trainer: ScriptOption = None,
    *,
    request: Request,
) -> None:
    """What does each technique do? One by one off or on, fresh seeds, and the BPB chain (docs/claims.md)."""
    with clear_errors(), request.told() as console:
        from claims.ablation import ablate as room
        from claims.ablation.greedy import greedy as add_greedily
        from claims.compare import Asked
        from search.study.load import find_study

        if preset and base:
            raise ValueError("One configuration is taken apart, but got --preset and --base. Leave one out.")
        given = request.given
        asked = Asked(
            trials=() if trial is None else (trial,),
            base=preset or base,
            seeds=seeds,
            within=within,
            workers=workers,
            home=given.home_folder,
            trainer=trainer,
            study=find_study(given.study) if given.study else None,
            session=functools.cache(request.session),
        )
        budget = math.inf if minutes is None else minutes
        if greedy:
            add_greedily(console, asked, candidates=candidates, minutes=budget)
        else:
            room.ablate(console, asked, room.Options(out, add, pairs, against, budget))


@command(OF_STUDY)
def submit(
    name: Annotated[str, typer.Option(help="What the submission is called.")] = "",
    author: Annotated[str, typer.Option(help="Who submits.")] = "",
    trial: Annotated[int | None, typer.Option(help="A trial of the study.")] = None,
    preset: Annotated[str, typer.Option(help="A preset of studies/presets.")] = "",
    config: Annotated[Path | None, typer.Option(help="A configuration file, JSON or TOML.")] = None,
    github_id: Annotated[str, typer.Option(help="[default: the author]")] = "",
    track: Annotated[
        str, typer.Option(help="record, or non-record: any seconds, no significance.")
    ] = "record",
    against: Annotated[
        str,
        typer.Option(help="The current record: a preset, trial or file (run here), published:NAME, a BPB."),
    ] = "",
    seeds: Annotated[int, typer.Option(help="Fresh seeds, each run whole; those that ran count.")] = 3,
    to: Annotated[Path, typer.Option(help="Folder of TRACK/DATE_NAME.")] = Path("records"),
    workers: RunsOption = None,
    check: Annotated[
        Path | None, typer.Option(help="Only run this finished folder again, and compare.")
    ] = None,
    *,
    request: Request,
) -> None:
    """A folder as records have it: seeds, evidence, logs. Run again in a clean process, or refused."""
    with clear_errors(), request.told() as console:
        from submission.question import Wish
        from submission.submit import check as check_folder
        from submission.submit import submit as submit_it

        if check is not None:
            check_folder(console, check)
            return
        given = [str(x) for x in (trial, preset or None, config) if x is not None]
        if len(given) != 1:
            raise ValueError("A submission names one of --trial N, --preset NAME and --config FILE.")
        wish = Wish(
            source=given[0],
            name=name,
            author=author,
            github_id=github_id,
            track=track,
            seeds=seeds,
            to=to,
            against=against,
            workers=workers,
            home=request.given.home_folder,
            session=functools.cache(request.session),
        )
        submit_it(console, wish)


def main() -> None:
    app()
