"""python -m corpus embedded | build | download | check DIR | info DIR: exit 0, or 2 and one paragraph."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from corpus.dataset import Dataset, check_dataset
from corpus.export import Target
from corpus.manifest import Manifest, read_manifest
from corpus.shards import read_header, read_shard, shard_paths
from corpus.tokenizer import BYTE260_VOCAB_SIZE, UNK_ID

TOLD_SHARE = 0.02  # of tokens, from which on single bytes are told
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Text in, token shards out.",
)


def _folder(text: str) -> Path:
    if not str(text).strip():  # a variable that is not set must not mean the current folder
        raise typer.BadParameter("it is empty. Name a folder (`.` is this one), or leave the option out.")
    return Path(text)


Root = Annotated[
    Path,
    typer.Option("--to", parser=_folder, metavar="PATH", help="Root that holds datasets/ and tokenizers/."),
]


@app.command()
def embedded(
    to: Root = Path("data"),
    variant: Annotated[str, typer.Option(help="sp<vocabulary size>, or byte260.")] = "sp1024",
) -> None:
    """The default corpus of installed packages' prose; built once, no network."""
    from corpus.embedded import ensure

    start = time.perf_counter()
    paths = ensure(to, variant)
    _print_manifest(paths.folder, read_manifest(paths.folder))
    print(f"ready in {time.perf_counter() - start:.2f} s")


@app.command()
def build(
    text: Annotated[list[Path], typer.Option("--text", help="File or folder of text; may be repeated.")],
    more: Annotated[
        list[Path] | None, typer.Argument(help="More files, as a shell pattern gives them.")
    ] = None,
    to: Root = Path("data"),
    name: Annotated[
        str, typer.Option(help="What the dataset is called; by default the first path's name.")
    ] = "",
    vocab_size: Annotated[int, typer.Option(help="Pieces of the tokenizer; 260 = plain bytes.")] = 1024,
    val_docs: Annotated[int | None, typer.Option(help="Documents of validation.")] = None,
    val_frac: Annotated[float | None, typer.Option(help="Or their share of all documents.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the documents' order.")] = 1337,
    max_doc_bytes: Annotated[int, typer.Option(help="Where .txt and .md files are cut.")] = 8192,
    caseops: Annotated[
        bool, typer.Option("--caseops", help="Lower case and operators, with byte sidecars: docs/caseops.md.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a dataset of the same name.")] = False,
) -> None:
    """A dataset from .txt, .md, .jsonl, .jsonl.xz, .jsonl.gz or .jsonl.zst."""
    from corpus import build as builder

    start = time.perf_counter()
    target = Target(to, _name(name, text[0]), vocab_size, caseops=caseops)
    options = builder.BuildOptions(val_docs, val_frac, seed, max_doc_bytes, force)
    manifest = builder.build(target, [*text, *(more or [])], options=options)
    _print_manifest(target.folder, manifest)
    if (share := byte_share(target.folder, target.vocab_size)) > TOLD_SHARE:
        print(
            f"{share:.0%} of the tokens are single bytes: {vocab_size:,} pieces have no room for all "
            f"characters of this text. --vocab-size {4 * vocab_size} has more; a study then fixes vocab_size."
        )
    print(f"ready in {time.perf_counter() - start:.2f} s")


@app.command()
def download(
    variant: Annotated[str, typer.Option(help="sp1024, sp4096, sp8192 or byte260, as published.")] = "sp1024",
    train_shards: Annotated[int, typer.Option(help="The first so many, 10^8 tokens and 200 MB each.")] = 1,
    to: Root = Path("data"),
    repo: Annotated[str, typer.Option(help="Dataset repository.")] = "",
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    prefix: Annotated[
        str, typer.Option(help="The repository's folder of datasets/ and tokenizers/.")
    ] = "datasets",
) -> None:
    """The published FineWeb export; resumes, and skips what is complete. HF_ENDPOINT is honoured."""
    from corpus import download as hub

    where = hub.Hub(repo_id=repo or hub.REPO_ID, revision=revision, prefix=prefix)
    done = hub.download(to, variant=variant, train_shards=train_shards, hub=where)
    files = "1 file" if len(done.fetched) == 1 else f"{len(done.fetched)} files"
    print(f"fetched {files}, skipped {len(done.skipped)} that were complete")
    _print_manifest(done.folder, done.manifest)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="The dataset folder.")],
    tokenizer: Annotated[Path | None, typer.Option(help="Its tokenizer, if it has no manifest.")] = None,
    seq_len: Annotated[int, typer.Option(help="Sequence length that must fit.")] = 1,
) -> None:
    """Every check there is over every token; exit 2 at the first that fails."""
    dataset = check_dataset(folder, tokenizer_path=tokenizer, seq_len=seq_len)
    _print_check(dataset)


@app.command()
def info(folder: Annotated[Path, typer.Argument(help="The dataset folder.")]) -> None:
    """What is in a dataset folder, from its manifest and headers."""
    _print_manifest(folder, read_manifest(folder))


def byte_share(folder: Path, vocab_size: int) -> float:
    """Of the first training shard's tokens, those that are a byte of a character without a piece."""
    tokens = read_shard(shard_paths(folder, "train")[0])
    found = (tokens > UNK_ID) & (tokens < BYTE260_VOCAB_SIZE)
    return float(found.mean()) if vocab_size > BYTE260_VOCAB_SIZE else 0.0


def _name(given: str, first: Path) -> str:
    name = given or first.resolve().name.split(".")[0]
    if not name or "/" in name or name.startswith("."):
        raise ValueError(
            f"A dataset's name becomes a folder's name, but got {name!r}. Use letters and digits."
        )
    return name


def _print_manifest(folder: Path, manifest: Manifest | None) -> None:
    for split in ("train", "val"):
        paths = shard_paths(folder, split)
        tokens = sum(read_header(path) for path in paths)
        line = f"{split:5} {tokens:>12,} tokens in {len(paths)} shard{'' if len(paths) == 1 else 's'}"
        if manifest is not None:
            entry = manifest.splits[split]
            line += f", {entry.documents:,} documents"
            if entry.bytes:
                line += f", {entry.bytes:,} bytes, {entry.bytes / entry.tokens:.4f} bytes/token"
        print(line)
    if manifest is not None:
        print(
            f"{folder}  tokenizer {manifest.tokenizer}  data_id {manifest.data_id}  {manifest.source['kind']}"
        )
    else:
        print(f"{folder}  no manifest: a foreign export")


def _print_check(dataset: Dataset) -> None:
    checked = dataset.byte_check
    print(
        f"{dataset.folder}  data_id {dataset.data_id}  {dataset.num_train_tokens:,} train and "
        f"{dataset.num_val_tokens:,} val tokens, {dataset.num_val_documents:,} val documents"
    )
    print(
        f"sound: {checked.num_bytes:,} bytes of {checked.num_documents:,} decoded documents equal those "
        "counted; train and validation disjoint; every token in the vocabulary"
    )


def main() -> None:
    """Run the command; bad input and unusable folders end with one paragraph and status 2."""
    try:
        app()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        print(f"error: {_os_error(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def _os_error(error: OSError) -> str:
    if error.errno is None:
        return str(error)
    return (
        f"The command needs files it can read and write, but {error.filename or 'one'}: {error.strerror}. "
        "Choose a writable folder with space on its disk (--to DIR)."
    )


if __name__ == "__main__":
    main()
