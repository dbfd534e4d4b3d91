"""The embedded corpus: deterministic, disjoint, built once, redone if cut off, safe for two at once."""

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

from corpus import embedded
from corpus.dataset import check_dataset
from corpus.embedded import EmbeddedPlan, build_embedded, ensure, extract_documents
from corpus.export import Target
from corpus.manifest import manifest_path, read_manifest
from corpus.shards import read_tokens, shard_paths
from corpus.text.documents import document_hashes
from corpus.text.sources import Package
from tests.corpus.conftest import write_package

PLAN = EmbeddedPlan(max_text_bytes=200_000, val_bytes=20_000, min_text_bytes=50_000)


@pytest.fixture
def packages(tmp_path: Path) -> list[Package]:
    return [write_package(tmp_path / "site", f"p{i}", num_files=20, seed=i) for i in range(2)]


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def build_small(root: Path, packages: list[Package]) -> Target:
    target = Target(root, "embedded", 400)
    build_embedded(target, packages=packages, plan=PLAN)
    return target


def test_two_builds_are_the_same_to_the_byte(tmp_path: Path, packages: list[Package]):
    first, second = (build_small(tmp_path / name, packages) for name in "ab")
    assert contents(first.root) == contents(second.root)
    manifest = read_manifest(first.folder)
    assert manifest is not None
    assert manifest.source["packages"] == {"p0": "1.0", "p1": "1.0"}


def test_the_whole_folder_passes_every_check(tmp_path: Path, packages: list[Package]):
    target = build_small(tmp_path / "data", packages)
    dataset = check_dataset(target.folder, seq_len=64)
    assert dataset.byte_check.complete
    assert dataset.tokenizer_path.name == "embedded_400_bpe.model"
    train, val = (
        document_hashes(read_tokens(shard_paths(target.folder, s)), whole=True) for s in ("train", "val")
    )
    assert not np.intersect1d(train, val).size
    assert train.size + val.size == np.unique(np.concatenate([train, val])).size


def test_documents_are_short_and_no_paragraph_comes_twice(packages: list[Package]):
    documents = extract_documents([*packages, packages[0]], max_bytes=10**9)
    assert max(len(document.encode()) for document in documents) <= 8192
    parts = [part for document in documents for part in document.split("\n\n")]
    assert len(parts) == len(set(parts))
    assert not any("not a comment" in part or "executed" in part for part in parts)


def test_a_cap_takes_from_every_package(packages: list[Package]):
    # 20 files each: half of the bytes without a mix would be all of p0.
    everything = extract_documents(packages, max_bytes=10**9)
    half = extract_documents(packages, max_bytes=sum(len(d.encode()) for d in everything) // 2)
    only_first = extract_documents(packages[:1], max_bytes=10**9)
    assert set(half) - set(only_first)
    assert set(half) & set(only_first)


def test_too_little_text_is_an_error(tmp_path: Path, packages: list[Package]):
    with pytest.raises(ValueError, match=r"needs 50,000 bytes of docstrings.*p0 1\.0"):
        build_embedded(
            Target(tmp_path / "data", "embedded", 400),
            packages=[Package("p0", "1.0", tmp_path / "none")],
            plan=PLAN,
        )


def test_unknown_variant(tmp_path: Path):
    with pytest.raises(ValueError, match="sp<vocabulary size> or byte260"):
        ensure(tmp_path, "gpt2")


@pytest.fixture
def small_defaults(monkeypatch: pytest.MonkeyPatch, packages: list[Package]) -> None:
    """`ensure` with the small packages in the place of the installed ones."""
    monkeypatch.setattr(embedded, "installed_packages", lambda: packages)
    monkeypatch.setattr(embedded, "EmbeddedPlan", lambda: PLAN)


@pytest.mark.usefixtures("small_defaults")
def test_a_complete_corpus_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = ensure(tmp_path / "data", "sp400")
    before = contents(tmp_path / "data")
    monkeypatch.setattr(embedded, "build_embedded", lambda target: pytest.fail("built again"))
    start = time.perf_counter()
    assert ensure(tmp_path / "data", "sp400") == paths
    assert time.perf_counter() - start < 0.05
    assert contents(tmp_path / "data") == before


@pytest.mark.usefixtures("small_defaults")
@pytest.mark.parametrize(
    "damage", ["manifest gone", "manifest cut", "shard cut", "shard gone", "stray shard"]
)
def test_an_interrupted_or_damaged_build_is_redone(tmp_path: Path, damage: str):
    paths = ensure(tmp_path / "data", "sp400")
    before = contents(tmp_path / "data")
    manifest, shard = manifest_path(paths.folder), paths.folder / "fineweb_train_000000.bin"
    if damage == "manifest gone":
        manifest.unlink()
        (paths.folder / ".fineweb_train_000000.bin.999.tmp").write_bytes(b"half")
    elif damage == "manifest cut":
        manifest.write_bytes(manifest.read_bytes()[:100])
    elif damage == "shard cut":
        shard.write_bytes(shard.read_bytes()[:-2])
    elif damage == "shard gone":
        shard.unlink()
    else:
        (paths.folder / "fineweb_train_000007.bin").write_bytes(shard.read_bytes())
    ensure(tmp_path / "data", "sp400")
    assert contents(tmp_path / "data") == before


def _ensure_and_log(root: Path, packages: list[Package], log: Path) -> None:
    """In a process of its own: build slowly enough that the others come in between."""
    real = embedded.build_embedded

    def slow(target: Target) -> None:
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.3)
        real(target, packages=packages, plan=PLAN)

    embedded.build_embedded = slow  # type: ignore[assignment]
    ensure(root, "sp400")
    assert read_manifest(root / "datasets/embedded_sp400") is not None


def test_of_several_processes_one_builds(tmp_path: Path, packages: list[Package]):
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    arguments = (tmp_path / "data", packages, log)
    processes = [context.Process(target=_ensure_and_log, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text() == "built\n"
    check_dataset(tmp_path / "data/datasets/embedded_sp400")


def test_plain_bytes_are_a_variant(tmp_path: Path, packages: list[Package]):
    target = Target(tmp_path / "data", "embedded", 260)
    build_embedded(target, packages=packages, plan=PLAN)
    assert target.folder.name == "embedded_byte260"
    dataset = check_dataset(target.folder)
    assert dataset.vocab_size == 260
    assert dataset.byte_check.num_bytes == dataset.num_val_tokens - dataset.num_val_documents
