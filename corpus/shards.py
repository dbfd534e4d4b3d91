"""One shard = 256 little-endian int32 (20240520, 1, n, 0...), n little-endian uint16: 1024 + 2n bytes."""

import os
import re
from pathlib import Path

import numpy as np

SHARD_MAGIC = 20240520
VERSION = 1
HEADER_WORDS = 256
HEADER_BYTES = 4 * HEADER_WORDS
SHARD_TOKENS = 10**8  # tokens per published shard; only the last one of a split is shorter
SPLITS = ("train", "val")
PUBLISHED = "fineweb10B"  # datasets of the challenge's export
_SHARD_NAME = re.compile(r"fineweb_(train|val)_\d{6,}\.bin")
_SIDECAR_NAME = re.compile(r"fineweb_val_bytes_\d{6,}\.bin")


def shard_name(split: str, index: int) -> str:
    """The published file name, e.g. `fineweb_train_000003.bin`."""
    if split not in SPLITS:
        raise ValueError(f"A split is 'train' or 'val', but got {split!r}. Use one of the two.")
    return f"fineweb_{split}_{index:06d}.bin"


def sidecar_name(index: int) -> str:
    """The published name of the bytes beside validation shard `index`."""
    return f"fineweb_val_bytes_{index:06d}.bin"


def write_shard(path: Path | str, tokens: np.ndarray) -> None:
    """Write `tokens` (N,), integers in 0..65535, as one shard, atomically: all of it or nothing.

    Raises ValueError if the tokens are not one-dimensional integers that fit uint16, or more than int32
    counts.
    """
    path = Path(path)
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError(
            f"A shard holds a one-dimensional array of integers, but got shape {tokens.shape} of "
            f"{tokens.dtype}. Flatten it, or cast it to an integer type."
        )
    if tokens.size and (int(tokens.min()) < 0 or int(tokens.max()) > 65535):
        raise ValueError(
            f"A shard's tokens are uint16 (0..65535), but got {int(tokens.min())}..{int(tokens.max())}. "
            "Use a vocabulary of at most 65,536."
        )
    if tokens.size > 2**31 - 1:
        raise ValueError(
            f"A shard counts its tokens in an int32, but got {tokens.size:,} tokens. Split them over several "
            "shards."
        )
    header = np.zeros(HEADER_WORDS, dtype="<i4")
    header[:3] = SHARD_MAGIC, VERSION, tokens.size
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(header.tobytes())
            file.write(tokens.astype("<u2", copy=False).tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_header(path: Path | str) -> int:
    """The number of tokens of the shard, after every check that needs no token.

    Raises ValueError on a truncated header, a foreign magic word, another version, a negative count, or a
    file size other than 1024 + 2n bytes.
    """
    path = Path(path)
    with path.open("rb") as file:
        raw = file.read(HEADER_BYTES)
        size_bytes = os.fstat(file.fileno()).st_size
    if len(raw) < HEADER_BYTES:
        raise ValueError(
            f"A shard begins with a header of {HEADER_BYTES} bytes, but {path} has {len(raw)} bytes in all. "
            "It is truncated or no shard: fetch or build it again."
        )
    magic, version, count = (int(word) for word in np.frombuffer(raw, dtype="<i4", count=3))
    if magic != SHARD_MAGIC:
        raise ValueError(
            f"A shard's first word is {SHARD_MAGIC}, but {path} has {magic}. It is a foreign file: "
            "convert it with `python -m corpus build`, or take it out of the folder."
        )
    if version != VERSION:
        raise ValueError(
            f"This reader knows shard version {VERSION}, but {path} has version {version}. "
            "Export the data again in version 1."
        )
    if count < 0 or size_bytes != HEADER_BYTES + 2 * count:
        kind = "truncated" if size_bytes < HEADER_BYTES + 2 * count else "followed by foreign bytes"
        raise ValueError(
            f"A shard of {count:,} tokens has exactly {HEADER_BYTES + 2 * count:,} bytes, but {path} has "
            f"{size_bytes:,}: it is {kind}. Fetch or build it again."
        )
    return count


def read_shard(path: Path | str) -> np.ndarray:
    """The shard's tokens (N,) uint16, a read-only memory map. Raises ValueError as `read_header` does."""
    count = read_header(path)
    if count == 0:
        return np.zeros(0, dtype=np.uint16)
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))


def shard_paths(data_dir: Path | str, split: str) -> list[Path]:
    """A split's shards in order, never the `fineweb_val_bytes_*` sidecars that the plain glob matches too.

    Raises ValueError if the folder does not exist or holds no shard of that split: matching nothing is an
    error.
    """
    data_dir = Path(data_dir)
    pattern = shard_name(split, 0).replace("000000", "*")
    if not data_dir.is_dir():
        raise ValueError(f"A dataset is a folder of shards, but {data_dir} is no folder. {way_to(data_dir)}")
    paths = [path for path in data_dir.glob(pattern) if _SHARD_NAME.fullmatch(path.name)]
    if not paths:
        raise ValueError(
            f"A dataset needs at least one {split} shard, but {data_dir} has no file {pattern} "
            "(byte sidecars do not count). Build it with `python -m corpus embedded`, `build` or `download`."
        )
    return sorted(paths, key=lambda path: int(path.stem.rsplit("_", 1)[1]))


def way_to(data_dir: Path) -> str:
    """How a dataset that is not there comes to be there."""
    kind, _, variant = data_dir.name.partition("_")
    if kind == PUBLISHED and variant:
        return f"Download it: `python -m corpus download --variant {variant} --train-shards 1`."
    if kind == "embedded" and variant:
        return f"Make it with `python -m corpus embedded --variant {variant}`."
    if not variant:
        return "Give the path of a dataset; `python -m corpus embedded` makes the default one."
    build = f"Build it from text: `python -m corpus build --text FILES_OR_FOLDER --name {kind}`."
    beside = sorted(p.name for p in data_dir.parent.glob(f"{kind}_*") if p.is_dir())
    if not beside:
        return build
    return (
        f"{', '.join(beside)} is there: set data_path, tokenizer_path and vocab_size to it. Or b{build[1:]}"
    )


def sidecar_paths(data_dir: Path | str) -> list[Path]:
    """The `fineweb_val_bytes_*` shards (bytes of the parallel validation token), in order; often none."""
    paths = [
        path for path in Path(data_dir).glob("fineweb_val_bytes_*.bin") if _SIDECAR_NAME.fullmatch(path.name)
    ]
    return sorted(paths, key=lambda path: int(path.stem.rsplit("_", 1)[1]))


def read_tokens(paths: list[Path], *, limit: int | None = None) -> np.ndarray:
    """The tokens (N,) uint16 of the shards one after the other, at most `limit` of them."""
    parts: list[np.ndarray] = []
    left = limit
    for path in paths:
        tokens = read_shard(path)[:left]
        parts.append(tokens)
        if left is not None:
            left -= tokens.size
            if left <= 0:
                break
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint16)


def check_vocab(tokens: np.ndarray, *, vocab_size: int, where: Path | str) -> None:
    """Raises ValueError if a token of (N,) is not below `vocab_size`."""
    if tokens.size == 0:
        return
    largest = int(tokens.max())
    if largest >= vocab_size:
        position = int(np.argmax(tokens >= vocab_size))
        raise ValueError(
            f"Every token must be below vocab_size {vocab_size}, but {where} holds up to {largest} "
            f"(the first at position {position:,}). Use the tokenizer and vocab_size that the shards were "
            "made with."
        )
