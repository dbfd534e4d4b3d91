"""The default corpus: prose of the standard library and the dependencies; built once, no network."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from corpus.export import Target, export_dataset, vocab_size_of
from corpus.manifest import check_sizes, is_complete, locked, read_manifest
from corpus.text.documents import Split, cut_documents, paragraphs, shuffled, unique_documents
from corpus.text.sources import (
    Package,
    find_package,
    is_prose,
    paragraph_key,
    prose,
    read_source,
    source_files,
    standard_library,
)

NAME = "embedded"
# The declared dependencies and what they bring along (torch: sympy, mpmath, networkx; optuna: alembic).
PACKAGES = (
    *("alembic", "click", "huggingface_hub", "jinja2", "mpmath", "narwhals", "networkx", "numpy", "optuna"),
    *("optuna_dashboard", "plotly", "rich", "scipy", "setuptools", "sqlalchemy", "sympy", "torch", "typer"),
)
SEED = 1337
MIN_DOCUMENT_BYTES = 200


@dataclass(frozen=True)
class EmbeddedPlan:
    """Sizes of the embedded corpus; tests use small ones."""

    max_text_bytes: int = 14_000_000  # about 6 M tokens of sp1024, and a build of some 20 s on one core
    val_bytes: int = 480_000  # about 190,000 tokens of sp1024: a p30 validation (65k-130k) fits in any order
    min_text_bytes: int = 2_000_000  # below it the vocabulary and a 25-s trial both run out of text


@dataclass(frozen=True)
class DatasetPaths:
    """Where a dataset's parts are."""

    folder: Path
    tokenizer: Path
    vocab_size: int


def ensure(data_dir: Path | str = "data", variant: str = "sp1024") -> DatasetPaths:
    """The embedded corpus under the root `data_dir`, built if it is not complete there; at once if it is.

    Safe with several processes at once: one builds, the others wait and find it built. A complete corpus is
    kept even when the installed packages change, so that a study's data stays the same. Raises ValueError on
    an unknown variant or too little text, OSError if the folder cannot be written.
    """
    target = Target(Path(data_dir), NAME, vocab_size_of(variant))
    if not is_complete(target.folder):
        with locked(target.folder):
            if not is_complete(target.folder):
                build_embedded(target)
    return DatasetPaths(target.folder, target.tokenizer_path, target.vocab_size)


def installed_packages() -> list[Package]:
    """The standard library and those of PACKAGES that are installed, in a fixed order."""
    found = [find_package(name) for name in PACKAGES]
    return [standard_library(), *(package for package in found if package is not None)]


def build_embedded(
    target: Target, *, packages: Sequence[Package] | None = None, plan: EmbeddedPlan | None = None
) -> None:
    """Extract, de-duplicate, shuffle, split and write; the caller holds the lock."""
    plan = plan or EmbeddedPlan()
    packages = installed_packages() if packages is None else packages
    texts = shuffled(extract_documents(packages, max_bytes=plan.max_text_bytes), seed=SEED)
    num_bytes = sum(len(text.encode()) for text in texts)
    if num_bytes < plan.min_text_bytes:
        names = ", ".join(f"{package.name} {package.version}" for package in packages)
        raise ValueError(
            f"The embedded corpus needs {plan.min_text_bytes:,} bytes of docstrings and comments, but found "
            f"{num_bytes:,} in {names}. Install the project's dependencies with their sources, or use "
            "`python -m corpus build --text` with text of your own."
        )
    num_val = len(_first_bytes(texts, plan.val_bytes))
    source = {
        "kind": "embedded",
        "seed": SEED,
        "packages": {package.name: package.version for package in packages},
        "documents": len(texts),
        "text_bytes": num_bytes,
        "text_sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
    }
    export_dataset(target, Split(val=texts[:num_val], train=texts[num_val:]), source=source)
    manifest = read_manifest(target.folder)
    assert manifest is not None
    check_sizes(target.folder, manifest)


def extract_documents(packages: Sequence[Package], *, max_bytes: int) -> list[str]:
    """Documents of at most 8 kB, each from one file, no paragraph twice, until they hold `max_bytes`.

    The files come in an order that depends on their relative paths and SEED alone, mixed over the packages,
    so that a cap takes its share from each.
    """
    seen: set[bytes] = set()
    documents: list[str] = []
    num_bytes = 0
    for path in shuffled([path for package in packages for path in source_files(package)], seed=SEED):
        source = read_source(path)
        if source is None:
            continue
        kept: list[str] = []
        for paragraph in (part for text in prose(source) for part in paragraphs(text)):
            if not is_prose(paragraph):
                continue
            key = hashlib.blake2b(paragraph_key(paragraph), digest_size=12).digest()
            if key not in seen:
                seen.add(key)
                kept.append(paragraph.rstrip())
        for document in cut_documents(kept):
            size = len(document.encode())
            if size >= MIN_DOCUMENT_BYTES:
                documents.append(document)
                num_bytes += size
        if num_bytes >= max_bytes:
            break
    return unique_documents(documents)


def _first_bytes(texts: list[str], max_bytes: int) -> list[str]:
    """The first texts, up to `max_bytes` of UTF-8 in all."""
    total = 0
    for index, text in enumerate(texts):
        total += len(text.encode())
        if total > max_bytes:
            return texts[:index]
    return texts
