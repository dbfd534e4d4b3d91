"""The command line: `search.py --trials 200` runs a study; `status`, `best`, `show N`, `costs`, `effects`,
`report`, `dashboard` and `export` read it; `compare` and `confirm` train on fresh seeds; `scan` drafts a
study.

Exit status: 0 done; 2 something to solve first, one `error: ...` line on stderr; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.common.console import clear_errors, make_console
from search.common.options import SAMPLERS, RunOptions, StudyOptions, WorkerSpec
from search.common.paths import DEFAULT_STUDY

if TYPE_CHECKING:
    from rich.console import Console

    from search.session.session import Session


def folder_of(text: str) -> Path:
    """A folder's path as it was given; a variable that is not set must not mean the current folder."""
    if text.strip():
        return Path(text)
    raise typer.BadParameter("it is empty. Name a folder (`.` is this one), or leave the option out.")


StudyOption = Annotated[Path | None, typer.Option(help="The study's file. [default: studies/laptop.toml]")]
StorageOption = Annotated[
    str | None,
    typer.Option(
        help="URL of a PostgreSQL; better in the variable CADDIE_STORAGE, which process lists do not show. "
        "[default: a private one under HOME/.caddie]"
    ),
]
HomeOption = Annotated[
    Path | None,
    typer.Option(
        parser=folder_of,
        metavar="PATH",
        help="Folder of the private database and of runs/. [default: the project]",
    ),
]
FromOption = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="OLD[,OLD2]",
        help="Earlier studies of this database whose BPB it begins with, whatever differs (docs/prior.md).",
    ),
]
RunsOption = Annotated[int | None, typer.Option(min=1, help="Runs at once. [default: GPUs, cores]")]
SeedsOption = Annotated[int, typer.Option(help="Fresh seeds of each configuration at most, 4 to 64.")]
ScriptOption = Annotated[Path | None, typer.Option(help="A script of our trainer's contract.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="Its tables as CSV; other text goes to stderr.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Its tables as JSON; other text goes to stderr.")]
# Imports of ours stand inside the commands: each starts with what it needs, and --help with next to nothing.
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


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
    niceness: Annotated[
        int, typer.Option(min=0, max=19, help="Lowers the trainers' priority: for a shared machine.")
    ] = 0,
) -> None:
    """Sample, train, prune and rank until the study has TRIALS finished trials. Run it again to go on."""
    options = StudyOptions(study, storage, home)
    context.obj = options
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
    )
    names = tuple(name.strip() for name in earlier.split(",") if name.strip())
    with clear_errors():
        from search.run import run_study

        run_study(RunOptions(worker, storage, workers, names, engine, tuple(engine_option or ())))


def begun(given: StudyOptions, *, brief: bool = False) -> Session:
    """The study that options name, which was begun; only to be read."""
    from search.session.session import read_session
    from search.study.load import find_study

    study, home = find_study(given.study), given.home_folder
    return read_session(study, home=home, storage=given.storage, environ=os.environ, brief=brief)


def read(
    context: typer.Context,
    options: StudyOptions,
    then: Callable[[Console, Session], None],
    *,
    csv: bool = False,
    json: bool = False,
) -> None:
    """Reads a study for one report. Nothing that it reads becomes garbage before its end: not to look for any
    saves a tenth of the time."""
    gc.disable()
    with clear_errors(), told(csv=csv, json=json) as console:
        session = begun(options.over(context.obj), brief=True)
        if session.note:
            print(session.note, file=sys.stderr if csv or json else sys.stdout)
        then(console, session)


@contextmanager
def told(*, csv: bool, json: bool) -> Generator[Console]:
    """Where a command prints: for a person, or its tables for a program. ValueError for both."""
    if csv and json:
        raise ValueError("A table has one form, but --csv and --json are both given. Leave one out.")
    if not csv and not json:
        yield make_console()
        return
    from search.common.tables import TableConsole

    console = TableConsole("csv" if csv else "json")
    yield console
    console.close()


@app.command()
def status(
    context: typer.Context,
    study: StudyOption = None,
    storage: StorageOption = None,
    home: HomeOption = None,
    csv: CsvOption = False,
    json: JsonOption = False,
) -> None:
    """How far the study is, what failed and why. Then what a trial costs beside its work."""
    from search.report.status import print_status

    read(context, StudyOptions(study, storage, home), print_status, csv=csv, json=json)


@app.command()
def best(
    context: typer.Context,
    study: StudyOption = None,
    storage: StorageOption = None,
    home: HomeOption = None,
    csv: CsvOption = False,
    json: JsonOption = False,
    top: Annotated[int, typer.Option(min=1, help="Rows of the leaderboard.")] = 10,
) -> None:
    """The leaderboard, and the command that repeats the best trial."""
    from search.report.leaderboard import print_leaderboard

    read(
        context,
        StudyOptions(study, storage, home),
        lambda console, session: print_leaderboard(console, session, top=top),
        csv=csv,
        json=json,
    )


@app.command()
def show(
    context: typer.Context,
    number: Annotated[int, typer.Argument(metavar="N", help="The trial's number.")],
    study: StudyOption = None,
    storage: StorageOption = None,
    home: HomeOption = None,
    csv: CsvOption = False,
    json: JsonOption = False,
) -> None:
    """Everything about trial N."""
    from search.report.trial import print_trial

    read(
        context,
        StudyOptions(study, storage, home),
        lambda console, session: print_trial(console, session, number),
        csv=csv,
        json=json,
    )


@app.command()
def costs(
    context: typer.Context,
    study: StudyOption = None,
    storage: StorageOption = None,
    home: HomeOption = None,
    csv: CsvOption = False,
    json: JsonOption = False,
) -> None:
    """Predicted bytes and seconds against measured ones. Errors, bias, how often the bound held."""
    from search.report.costs import print_costs

    read(context, StudyOptions(study, storage, home), print_costs, csv=csv, json=json)


@app.command()
def effects(
    context: typer.Context,
    study: StudyOption = None,
    storage: StorageOption = None,
    home: HomeOption = None,
    csv: CsvOption = False,
    json: JsonOption = False,
    top: Annotated[int, typer.Option(min=1, help="Rows of each table.")] = 15,
) -> None:
    """By how much each technique and setting moves val_bpb. With what confidence, and which pairs clash."""
    from search.report.effects import print_effects

    read(
        context,
        StudyOptions(study, storage, home),
        lambda console, session: print_effects(console, session, top=top),
        csv=csv,
        json=json,
    )


@app.command()
def report(
    context: typer.Context,
    study: StudyOption = None,
    storage: StorageOption = None,
    home: HomeOption = None,
    to: Annotated[
        Path | None,
        typer.Option(help="A file: .html, .md or .json. [default: HOME/runs/STUDY/report.html]"),
    ] = None,
    dollars_per_gpu_hour: Annotated[float, typer.Option(min=0.0, help="What an hour of a GPU costs.")] = 0.0,
) -> None:
    """The study as one offline page to read and to send. Or as Markdown, or JSON."""

    def write(console: Console, session: Session) -> None:
        from pages.report import write_report

        path = write_report(session, to, dollars_per_gpu_hour=dollars_per_gpu_hour)
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)

    read(context, StudyOptions(study, storage, home), write)


@app.command()
def dashboard(
    context: typer.Context,
    study: StudyOption = None,
    storage: StorageOption = None,
    home: HomeOption = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0: any free one.")] = 8080,
) -> None:
    """optuna-dashboard for this study, on this machine only. For who has the address that this prints."""

    def serve_it(console: Console, session: Session) -> None:
        from search.report.dashboard import serve

        gc.enable()
        serve(session.url, session.study.name, port=port, artifact_dir=session.folders.artifacts)

    read(context, StudyOptions(study, storage, home), serve_it)


def on_shelf(
    context: typer.Context,
    options: StudyOptions,
    then: Callable[[Console, Any], None],
    *,
    csv: bool = False,
    json: bool = False,
) -> None:
    """For a command about a database's studies; `then` gets a Shelf."""
    with clear_errors(), told(csv=csv, json=json) as console:
        from search.session.shelf import shelf_of

        given = options.over(context.obj)
        then(console, shelf_of(given.home_folder, given.storage, os.environ))


@app.command()
def studies(
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Archived ones too.")] = False,
    storage: StorageOption = None,
    home: HomeOption = None,
    csv: CsvOption = False,
    json: JsonOption = False,
) -> None:
    """Every study of the database. Its trials, its best, when it last ran."""

    def show_all(console: Console, shelf: Any) -> None:
        from search.report.studies import print_studies

        print_studies(console, shelf, every=every)

    on_shelf(context, StudyOptions(None, storage, home), show_all, csv=csv, json=json)


@app.command()
def rename(
    context: typer.Context, old: str, new: str, storage: StorageOption = None, home: HomeOption = None
) -> None:
    """Gives a study another name, and its folder. Then set that `name` in its file."""

    def rename_it(console: Console, shelf: Any) -> None:
        shelf.rename(old, new)
        console.print(f'{old} is {new} now. Set name = "{new}" in its file.', highlight=False, markup=False)

    on_shelf(context, StudyOptions(None, storage, home), rename_it)


@app.command()
def archive(
    context: typer.Context,
    name: str,
    undo: Annotated[bool, typer.Option("--undo", help="Show it again.")] = False,
    storage: StorageOption = None,
    home: HomeOption = None,
) -> None:
    """Hides a study from the list of studies. Nothing of it is lost."""

    def archive_it(console: Console, shelf: Any) -> None:
        shelf.archive(name, undo=undo)
        told = f"{name} is listed again." if undo else f"{name} is archived; --undo lists it again."
        console.print(told, highlight=False, markup=False)

    on_shelf(context, StudyOptions(None, storage, home), archive_it)


@app.command()
def delete(
    context: typer.Context,
    name: str,
    yes: Annotated[bool, typer.Option("--yes", help="Without it, only what would go is told.")] = False,
    storage: StorageOption = None,
    home: HomeOption = None,
) -> None:
    """Deletes a study, its trials and its folder."""

    def delete_it(console: Console, shelf: Any) -> None:
        console.print(
            f"deleted: {shelf.delete(name, sure=yes)}", highlight=False, soft_wrap=True, markup=False
        )

    on_shelf(context, StudyOptions(None, storage, home), delete_it)


@app.command()
def diff(
    context: typer.Context,
    first: Annotated[int, typer.Argument(metavar="A", help="A trial's number.")],
    second: Annotated[int, typer.Argument(metavar="B", help="Another's.")],
    study: StudyOption = None,
    storage: StorageOption = None,
    home: HomeOption = None,
    csv: CsvOption = False,
    json: JsonOption = False,
) -> None:
    """What two trials differ in."""
    from search.report.studies import print_diff

    read(
        context,
        StudyOptions(study, storage, home),
        lambda console, session: print_diff(console, session, first, second),
        csv=csv,
        json=json,
    )


@app.command()
def scan(
    script: Annotated[Path, typer.Argument(help="A training script; it is read, never run.")],
    out: Annotated[Path | None, typer.Option(help="The study file to write. [default: print it]")] = None,
) -> None:
    """Draft a study from what a script reads from its environment. See docs/any_trainer.md."""
    with clear_errors():
        from search.trainers.foreign import draft

        print(draft.write(script, out), end="")


@app.command()
def export(
    context: typer.Context,
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
    study: StudyOption = None,
    storage: StorageOption = None,
    home: HomeOption = None,
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
        options = StudyOptions(study, storage, home)
        read(context, options, lambda _, session: write_trial(session, trial))


@app.command()
def compare(
    context: typer.Context,
    what: Annotated[
        list[str] | None,
        typer.Argument(help="smear_gate, smear_gate.mode=previous,average, xsa.last_n=2,4 or A.json B.json"),
    ] = None,
    trial: Annotated[list[int] | None, typer.Option(help="A trial of the study, twice for two.")] = None,
    base: Annotated[str, typer.Option(help="A preset, a file or a trial. [default: laptop]")] = "",
    seeds: SeedsOption = 12,
    within: Annotated[float, typer.Option(min=0.0, help="Bits per byte that count as none.")] = 0.01,
    workers: RunsOption = None,
    trainer: ScriptOption = None,
    study: StudyOption = None,
    storage: StorageOption = None,
    home: HomeOption = None,
    csv: CsvOption = False,
    json: JsonOption = False,
) -> None:
    """Does it help? Both arms on the same fresh seeds, until the answer is clear (docs/claims.md)."""
    with clear_errors(), told(csv=csv, json=json) as console:
        from claims.compare import Asked
        from claims.compare import compare as compare_arms
        from search.study.load import find_study

        given = StudyOptions(study, storage, home).over(context.obj)
        asked = Asked(
            words=tuple(what or ()),
            trials=tuple(trial or ()),
            base=base,
            seeds=seeds,
            within=within,
            workers=workers,
            home=given.home_folder,
            trainer=trainer,
            study=find_study(given.study) if given.study else None,
            session=functools.cache(functools.partial(begun, given)),
        )
        compare_arms(console, asked)


@app.command()
def confirm(
    context: typer.Context,
    top: Annotated[int, typer.Option(min=1, max=10, help="Feasible trials, by their value.")] = 3,
    against: Annotated[str, typer.Option(help="A preset, a file or a trial. [default: the start]")] = "",
    seeds: SeedsOption = 16,
    workers: RunsOption = None,
    trainer: ScriptOption = None,
    study: StudyOption = None,
    storage: StorageOption = None,
    home: HomeOption = None,
    csv: CsvOption = False,
    json: JsonOption = False,
) -> None:
    """A study's best again on fresh seeds, until it is clear who is best; `best` ranks by it from then on."""
    with clear_errors(), told(csv=csv, json=json) as console:
        from claims.compare import Asked
        from claims.confirm import confirm as confirm_trials

        given = StudyOptions(study, storage, home).over(context.obj)
        asked = Asked(seeds=seeds, workers=workers, home=given.home_folder, trainer=trainer)
        confirm_trials(console, begun(given), asked, top=top, against=against)


def main() -> None:
    app()
