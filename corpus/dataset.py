"""open_dataset(folder, tokenizer_path, vocab_size, seq_len): all checks a run needs before its first step."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corpus import caseops
from corpus.bpb import (
    CHECK_TOKENS,
    ByteCheck,
    ByteLuts,
    byte_luts,
    count_bytes,
    usable_tokens,
    verify_bos,
    verify_bytes,
)
from corpus.manifest import Manifest, check_sizes, manifest_path, read_manifest, root_of, sha256_file
from corpus.shards import (
    HEADER_BYTES,
    check_vocab,
    read_header,
    read_shard,
    read_tokens,
    shard_paths,
    sidecar_paths,
)
from corpus.text.documents import document_hashes
from corpus.tokenizer import BOS_ID, Tokenizer, load_tokenizer

OPEN_TOKENS = 1 << 23  # tokens of a split looked at when a run opens it; `corpus check` looks at all
_FINGERPRINT_BYTES = 1 << 16
# A crawl may hold a few identical pages that nobody took out; an export split at the wrong place shares most
# documents. Between the two lies this share; our own builds must share none.
_FOREIGN_SHARED_FRAC = 0.01
_FOREIGN_BYTES_FRAC = 0.001  # how far a foreign sidecar's sum may lie from ours


@dataclass(frozen=True)
class Dataset:
    """A checked dataset folder."""

    folder: Path
    name: str
    tokenizer_path: Path
    vocab_size: int
    seq_len: int
    train_paths: tuple[Path, ...]
    val_paths: tuple[Path, ...]
    num_train_tokens: int
    num_val_tokens: int  # all of the split; `num_scored_tokens` of them are scored
    num_val_documents: int
    luts: ByteLuts
    byte_check: ByteCheck  # what was decoded and found equal when the folder was opened
    data_id: str  # the same for the same data on every machine
    sidecars: tuple[Path, ...] = ()  # bytes of each validation token, where the text was transformed

    @property
    def num_scored_tokens(self) -> int:
        """floor((N - 1) / seq_len) * seq_len: it changes with seq_len, so it is logged with each score."""
        return usable_tokens(self.num_val_tokens, seq_len=self.seq_len)

    def val_tokens(self, *, max_tokens: int | None = None) -> np.ndarray:
        """Validation tokens (usable + 1,) uint16: inputs are [:-1], targets [1:]; a memory map if one shard.

        `max_tokens` takes the first so many only (a proxy's validation), again whole windows.
        """
        total = self.num_val_tokens if max_tokens is None else min(self.num_val_tokens, max_tokens)
        usable = usable_tokens(total, seq_len=self.seq_len)
        return read_tokens(list(self.val_paths), limit=usable + 1)

    def target_bytes(self, tokens: np.ndarray) -> np.ndarray:
        """Bytes uint16 (n,) of each target of validation's first n + 1 tokens: of the sidecars if there are
        some (a memory map if one shard), else of the tables."""
        if self.sidecars:
            return read_tokens(list(self.sidecars), limit=tokens.size)[1:]
        return count_bytes(self.luts, tokens[:-1], tokens[1:])


def open_dataset(
    data_dir: Path | str, *, tokenizer_path: Path | str | None = None, vocab_size: int, seq_len: int
) -> Dataset:
    """Check the folder and return what a trainer needs; `tokenizer_path` None takes the manifest's.

    Raises ValueError: no such folder, no shards of a split, truncated or foreign shard, files that are not
    the manifest's, wrong tokenizer size, a token >= vocab_size, BOS missing, bytes of decoded text that
    differ from the tables, byte sidecars that differ from the tables, train and validation overlapping, too
    few tokens for seq_len. Of large sets only the first tokens of each shard are looked at; `check_dataset`
    looks at all.
    """
    return _open(Path(data_dir), tokenizer_path, vocab_size=vocab_size, seq_len=seq_len, limit=OPEN_TOKENS)


def check_dataset(
    data_dir: Path | str, *, tokenizer_path: Path | str | None = None, seq_len: int = 1
) -> Dataset:
    """`open_dataset` without shortcuts: every token, every document, and every SHA-256 of the manifest."""
    folder = Path(data_dir)
    shard_paths(folder, "val")
    manifest = read_manifest(folder)
    if manifest is None and tokenizer_path is None:
        raise _no_tokenizer(folder)
    if manifest is not None:
        _check_hashes(folder, manifest)
        vocab_size = manifest.vocab_size
    else:
        vocab_size = _size_in_name(folder)
    return _open(folder, tokenizer_path, vocab_size=vocab_size, seq_len=seq_len, limit=None)


def _open(
    folder: Path, tokenizer_path: Path | str | None, *, vocab_size: int, seq_len: int, limit: int | None
) -> Dataset:
    if seq_len < 1:
        raise ValueError(
            f"seq_len must be at least 1 token, but got {seq_len}. Use 256 or 1024, for example."
        )
    paths = {split: shard_paths(folder, split) for split in ("train", "val")}
    manifest = read_manifest(folder)
    sizes = {split: sum(read_header(path) for path in paths[split]) for split in paths}
    _check_length(folder, sizes, seq_len)
    if manifest is not None:
        check_sizes(folder, manifest)
    tokenizer_file = _tokenizer_file(folder, manifest, tokenizer_path)
    tokenizer = load_tokenizer(tokenizer_file, vocab_size=vocab_size)
    _check_same_tokenizer(tokenizer_file, manifest)
    for split in paths:
        for path in paths[split]:
            check_vocab(read_shard(path)[: _share(limit, paths[split])], vocab_size=vocab_size, where=path)
    val = read_tokens(paths["val"])
    documents = verify_bos(val, num_documents=manifest.splits["val"].documents if manifest else None)
    verify_bos(read_tokens(paths["train"][:1], limit=CHECK_TOKENS))
    luts = byte_luts(tokenizer)
    check_overlap(paths["train"], paths["val"], strict=_is_own(manifest), limit=limit)
    transformed = caseops.is_caseops(tokenizer)
    if transformed:
        byte_check = _check_sidecars(folder, tokenizer, val, limit=limit, strict=_is_own(manifest))
    else:
        byte_check = _check_bytes(folder, tokenizer, luts, val, CHECK_TOKENS if limit else None)
    return Dataset(
        folder=folder,
        name=folder.resolve().name,
        tokenizer_path=tokenizer_file,
        vocab_size=vocab_size,
        seq_len=seq_len,
        train_paths=tuple(paths["train"]),
        val_paths=tuple(paths["val"]),
        num_train_tokens=sizes["train"],
        num_val_tokens=sizes["val"],
        num_val_documents=documents,
        luts=luts,
        byte_check=byte_check,
        data_id=manifest.data_id if manifest else _foreign_data_id(paths, tokenizer_file),
        sidecars=tuple(sidecar_paths(folder)) if transformed else (),
    )


def check_overlap(
    train: list[Path], val: list[Path], *, strict: bool = True, limit: int | None = None
) -> int:
    """The number of validation documents that are also training documents, by the hash of all their tokens.

    Looks at the first tokens of each shard, `limit` in all of a split, or at everything. Raises ValueError if
    one is shared and `strict`, or else if a shard's first document is, or more than 1 % of those compared.
    """
    val_hashes = [_shard_hashes(path, _share(limit, val)) for path in val]
    known = np.unique(np.concatenate(val_hashes))
    shared: set[int] = set()
    whole_shard: str | None = None
    for path in train:
        hashes = _shard_hashes(path, _share(limit, train))
        common = np.intersect1d(hashes, known)
        shared.update(common.tolist())
        if hashes.size and common.size == np.unique(hashes).size:
            whole_shard = path.name
    if not shared or not (strict or whole_shard or len(shared) > _FOREIGN_SHARED_FRAC * known.size):
        return len(shared)
    where = f", {whole_shard} wholly" if whole_shard else ""
    raise ValueError(
        f"Train and validation overlap: they must share no document, but {len(shared)} of {known.size} "
        f"validation documents compared are also in the training shards{where}. Take validation shards out "
        "of the training files, or build the dataset again with the same first documents as validation."
    )


def _shard_hashes(path: Path, limit: int | None) -> np.ndarray:
    """Hashes of the shard's documents, the last too: a shard copied whole has the same."""
    tokens = read_shard(path)
    cut = limit is not None and tokens.size > limit
    return document_hashes(tokens[:limit], whole=not cut)


def _share(limit: int | None, paths: list[Path]) -> int | None:
    return None if limit is None else max(1 << 16, limit // len(paths))


def _is_own(manifest: Manifest | None) -> bool:
    """Whether our builder made it, which promises disjoint splits; a foreign export does not."""
    return manifest is not None and manifest.source.get("kind") in ("embedded", "text")


def _check_length(folder: Path, sizes: dict[str, int], seq_len: int) -> None:
    for split, count in sizes.items():
        if count < seq_len + 1:
            raise ValueError(
                f"Each split needs at least one window of seq_len + 1 = {seq_len + 1:,} tokens, but the "
                f"{split} split of {folder} has {count:,}. Use a shorter seq_len or a larger corpus."
            )


def _check_bytes(
    folder: Path, tokenizer: Tokenizer, luts: ByteLuts, val: np.ndarray, limit: int | None
) -> ByteCheck:
    """The tables against decoded text, and against the byte sidecars where the folder has some."""
    sidecars = sidecar_paths(folder)
    if sidecars:
        count = sum(read_header(path) for path in sidecars)
        if count != val.size:
            raise ValueError(
                f"Byte sidecars hold one value a validation token, but {folder} has {count:,} values for "
                f"{val.size:,} tokens. Fetch or export them again."
            )
        budget = read_tokens(sidecars, limit=limit)
        counted = count_bytes(luts, val[: budget.size - 1], val[1 : budget.size])
        if not np.array_equal(budget[1:], counted):
            raise ValueError(
                f"The text behind {folder} was transformed: its sidecars give {int(budget[1:].sum()):,} "
                f"bytes where the tokenizer's tables give {int(counted.sum()):,}. Such data cannot be scored "
                "by the tables; use an export without sidecars."
            )
    return verify_bytes(tokenizer, luts, val, max_tokens=limit)


def _check_sidecars(
    folder: Path, tokenizer: Tokenizer, val: np.ndarray, *, limit: int | None, strict: bool
) -> ByteCheck:
    """CaseOps data: the sidecars against the tokens' own count, and that against the decoded original text.

    Ours must agree in every value; a foreign export, which may count what its normaliser dropped, within
    0.1 % and with 0 for BOS."""
    sidecars = sidecar_paths(folder)
    count = sum(read_header(path) for path in sidecars)
    if count != val.size:
        raise ValueError(
            f"CaseOps data are scored by byte sidecars, one value a validation token, but {folder} has "
            f"{count:,} values for {val.size:,} tokens. Fetch or export them again."
        )
    told = read_tokens(sidecars, limit=limit)
    counted = caseops.token_bytes(tokenizer, val[: told.size])
    total, expected = int(told.sum(dtype=np.int64)), int(counted.sum(dtype=np.int64))
    odd = not np.array_equal(told, counted)
    if not strict:
        odd = abs(total - expected) > _FOREIGN_BYTES_FRAC * expected or bool(
            told[val[: told.size] == BOS_ID].any()
        )
    if odd:
        raise ValueError(
            f"The sidecars must hold the bytes of each token's original text, but those of {folder} sum to "
            f"{total:,} where the tokens stand for {expected:,}. Fetch or build them again."
        )
    return caseops.verify_documents(tokenizer, val, counted, max_tokens=CHECK_TOKENS if limit else None)


def _tokenizer_file(folder: Path, manifest: Manifest | None, given: Path | str | None) -> Path:
    if given is not None:
        return Path(given)
    if manifest is None:
        raise _no_tokenizer(folder)
    return root_of(folder) / manifest.tokenizer


def _no_tokenizer(folder: Path) -> ValueError:
    return ValueError(
        f"A dataset is read with the tokenizer that made it, but {folder} has no "
        f"{manifest_path(folder).name} to name it and no tokenizer was given. Give the tokenizer's path."
    )


def _check_same_tokenizer(path: Path, manifest: Manifest | None) -> None:
    if manifest is not None and sha256_file(path) != manifest.tokenizer_sha256:
        raise ValueError(
            f"Shards are read with the very tokenizer that made them, but {path} is another file of the same "
            f"size than {manifest.tokenizer} in the manifest. Give that one, or build the dataset again."
        )


def _check_hashes(folder: Path, manifest: Manifest) -> None:
    check_sizes(folder, manifest)
    for split in manifest.splits.values():
        for shard in split.shards:
            if sha256_file(folder / shard.file) != shard.sha256:
                raise ValueError(
                    f"A shard's SHA-256 is in the manifest, but {folder / shard.file} has another: it was "
                    "changed or damaged. Build or fetch the dataset again."
                )


def _size_in_name(folder: Path) -> int:
    """The vocabulary size that the published folder names carry: fineweb10B_sp1024, fineweb10B_byte260."""
    suffix = folder.resolve().name.removesuffix("_caseops").rsplit("_", 1)[-1]
    for kind in ("sp", "byte"):
        if suffix.startswith(kind) and suffix.removeprefix(kind).isdecimal():
            return int(suffix.removeprefix(kind))
    raise ValueError(
        f"The vocabulary size is in the manifest or the folder's name (..._sp1024), but {folder} has "
        "neither. Rename the folder, or build the dataset with `python -m corpus build`."
    )


def _foreign_data_id(paths: dict[str, list[Path]], tokenizer_file: Path) -> str:
    """From names, headers, sizes and first bytes: cheap, and the same wherever the files lie."""
    digest = hashlib.sha256(sha256_file(tokenizer_file).encode())
    for path in (*paths["train"], *paths["val"], *sidecar_paths(paths["val"][0].parent)):
        with path.open("rb") as file:
            first = file.read(HEADER_BYTES + _FINGERPRINT_BYTES)
        digest.update(f"{path.name}:{path.stat().st_size}:".encode() + first)
    return digest.hexdigest()[:16]
