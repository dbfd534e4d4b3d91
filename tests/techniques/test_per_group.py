"""Groups, sorted rows and their way back."""

import numpy as np
import pytest
import torch

from techniques.compression import per_group
from techniques.compression.brotli_shuffle import BrotliShuffle
from techniques.compression.per_group import PerGroup, distances, groups_of, likeness_order
from tests.techniques.test_ans import integers, items
from trainer.artifact import Packed, pack, unpack

G = torch.Generator().manual_seed(4)


def codec(**settings):
    return PerGroup(PerGroup.Config(**settings)).codec()


def families(rows: int = 96, columns: int = 64) -> torch.Tensor:
    """Rows of a few kinds, shuffled: sorting finds them."""
    kinds = torch.randint(-9, 10, (6, columns), generator=G)
    which = torch.randint(0, 6, (rows,), generator=G)
    return (kinds[which] + torch.randint(-1, 2, (rows, columns), generator=G)).to(torch.int8)


def layers() -> list[Packed]:
    made = [Packed(f"blocks.{i}.q", families(), torch.rand(96, generator=G).half()) for i in range(3)]
    return [*items(), *made, Packed("blocks.0.k", integers(5, 64), torch.ones(5).half())]


@pytest.mark.parametrize("coder", ["brotli", "xz"])
@pytest.mark.parametrize("sort", ["auto", "always", "never"])
def test_an_artifact_comes_back_exactly(coder: str, sort: str):
    packed = layers()
    artifact = pack(packed, {"a": 1}, codec(coder=coder, sort=sort))
    assert artifact == pack(packed, {"a": 1}, codec(coder=coder, sort=sort))
    values, weights = unpack(artifact, {"per_group": codec()})  # whatever the reader's own settings
    assert values == {"a": 1}
    assert all(torch.equal(weights[p.name], p.dequantized()) for p in packed)


@pytest.mark.parametrize("data", [b"", b"a", bytes(5000), b'{"tensors": 3}'])
def test_other_bytes_come_back_too(data: bytes):
    assert codec().decompress(codec().compress(data)) == data


def test_the_chain_is_the_obvious_loop():
    q = families(40, 12).numpy()
    chain, left = [0], set(range(1, 40))
    while left:
        distance = {i: int(np.abs(q[i].astype(int) - q[chain[-1]]).sum()) for i in left}
        chain.append(min(left, key=lambda i: (distance[i], i)))
        left.remove(chain[-1])
    assert likeness_order(q).tolist() == chain


def test_distances_are_exact_up_to_the_ends_of_int8():
    ends = np.repeat([[-128], [127]], 300, axis=1).astype(np.int8)
    q = np.concatenate([ends, families(70, 300).numpy()])
    obvious = np.abs(q[:, None].astype(int) - q[None]).sum(2)
    assert obvious.max() == 255 * 300 and np.array_equal(distances(q), obvious)


def test_the_chain_is_a_permutation_in_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(per_group, "SORT_BLOCK", 7)
    order = likeness_order(families(40, 12).numpy())
    assert sorted(order.tolist()) == list(range(40)) and sorted(order[:7].tolist()) == list(range(7))


def test_groups_are_tensors_that_differ_in_numbers():
    layout = [
        ("int8", "blocks.0.q", (4, 8)),
        ("scale", "blocks.0.q", (4,)),
        ("int8", "blocks.11.q", (4, 8)),
        ("int8", "blocks.1.q", (4, 6)),
        ("int8", "tok_emb", (9, 8)),
        ("fix", "tok_emb", (9, 8)),
    ]
    assert groups_of(layout) == [[0, 2], [3], [4]]


def test_sorting_pays_where_rows_are_alike_and_auto_knows_where():
    alike = [Packed("a", families(256, 64), torch.ones(256).half())]
    noise = [Packed("a", integers(256, 64), torch.ones(256).half())]
    for packed, pays in ((alike, True), (noise, False)):
        sizes = {s: len(pack(packed, {}, codec(sort=s))) for s in ("auto", "always", "never")}
        assert sizes["auto"] == min(sizes["always"], sizes["never"])
        assert (sizes["always"] < 0.9 * sizes["never"]) is pays
    assert len(pack(alike, {}, codec())) < len(pack(alike, {}, BrotliShuffle().codec()))


def test_of_a_large_group_auto_looks_at_a_few_columns(monkeypatch: pytest.MonkeyPatch):
    """It takes the better way for all of them, and compresses little twice."""
    monkeypatch.setattr(per_group, "TRIED", 1000)
    alike = [Packed(f"blocks.{i}.q", families(), torch.ones(96).half()) for i in range(11)]
    noise = [Packed(f"blocks.{i}.q", integers(96, 64), torch.ones(96).half()) for i in range(11)]
    squeezed: list[int] = []
    plain = per_group.PerGroupCodec.squeeze

    def counted(self: per_group.PerGroupCodec, data: bytes) -> bytes:
        squeezed.append(len(data))
        return plain(self, data)

    monkeypatch.setattr(per_group.PerGroupCodec, "squeeze", counted)
    for packed, better in ((alike, "always"), (noise, "never")):
        squeezed.clear()
        artifact = pack(packed, {}, codec())
        assert sum(squeezed) < 1.5 * sum(p.q.numel() for p in packed)
        assert len(artifact) == len(pack(packed, {}, codec(sort=better)))
        _, weights = unpack(artifact, {"per_group": codec()})
        assert all(torch.equal(weights[p.name], p.dequantized()) for p in packed)
