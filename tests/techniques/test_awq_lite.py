"""AWQ-lite: the group is the salient one, its columns are the best there are, and the artifact keeps them."""

from types import SimpleNamespace
from typing import Any

import torch

from techniques.base import Shape
from techniques.quantization.awq_lite import AwqLite, best_columns, error_of, salient_group
from techniques.quantization.gptq import Gptq
from tests.techniques.test_gptq import C, correlated, weights
from trainer.artifact import Packed, ZlibCodec, pack, unpack


def quantised(w: torch.Tensor, h: torch.Tensor, bits: int = 4) -> Packed:
    quantizer = Gptq(C).quantizer()
    quantizer.hessians["w"] = h
    return Packed("w", *quantizer.quantize("w", w, bits))


def corrected(w: torch.Tensor, h: torch.Tensor, group: int, facts: dict[str, Any]) -> tuple[Packed, Packed]:
    before = quantised(w, h)
    other = Packed("e", torch.ones(4, 40, dtype=torch.int8), torch.ones(4).half())
    export = SimpleNamespace(
        weights={"w": w, "e": torch.ones(4, 40)},
        roles={"w": "mlp", "e": "embed"},
        hessians={"w": h, "e": torch.eye(40)},
        note=lambda **f: facts.update(f),
    )
    after = AwqLite(AwqLite.Config(group=group)).correct([before, other], export)
    assert after[1] is other
    return before, after[0]


def test_the_salient_group_is_the_obvious_one():
    w, h = weights(6, 40), correlated(40)
    h[16:24] *= 5.0
    h[:, 16:24] *= 5.0
    sums = []
    for start in range(0, 40, 12):  # the last group has four columns
        group = range(start, min(start + 12, 40))
        each = [float(h[j, j]) ** 0.5 * sum(abs(float(w[i, j])) for i in range(6)) / 6 for j in group]
        sums.append(sum(each) / len(each))
    assert salient_group(w, h, 12) == 12 * sums.index(max(sums)) == 12


def test_no_other_value_of_the_columns_has_a_smaller_error():
    w, h = weights(5, 24), correlated(24)
    stored, columns = quantised(w, h).dequantized(), slice(8, 16)
    best = stored.clone().double()
    best[:, columns] = best_columns(w, stored, h, columns)
    free = stored.double().clone()
    inside = torch.zeros(5, 8, dtype=torch.float64, requires_grad=True)

    def error() -> torch.Tensor:
        e = (w.double() - free).clone()
        e[:, columns] = w.double()[:, columns] - inside
        return ((e @ h.double()) * e).sum()

    optimiser = torch.optim.LBFGS([inside], max_iter=200, line_search_fn="strong_wolfe")
    optimiser.step(lambda: (optimiser.zero_grad(), (loss := error()).backward(), loss)[-1])
    assert error_of(w, best, h) <= 1.02 * float(error().detach())  # damping is all that parts them
    assert error_of(w, best, h) < error_of(w, stored, h)


def test_the_error_falls_and_the_artifact_brings_the_columns_back():
    w, h, facts = weights(32, 40), correlated(40), {}
    before, after = corrected(w, h, 16, facts)
    left = error_of(w, after.dequantized(), h)
    assert left < 0.75 * error_of(w, before.dequantized(), h)
    assert facts["corrected"] == 1 and facts["rejected"] == 0
    assert abs(facts["hessian_error_left"] - left / error_of(w, before.dequantized(), h)) < 1e-9
    (fix,) = after.fixes
    assert not after.q[:, fix.at : fix.at + 16].any() and fix.q.shape == (32, 16)
    kept = torch.ones(40, dtype=torch.bool)
    kept[fix.at : fix.at + 16] = False
    assert torch.equal(after.q[:, kept], before.q[:, kept])
    _, loaded = unpack(pack([after], {}, ZlibCodec()), {"zlib": ZlibCodec()})
    assert torch.equal(loaded["w"], after.dequantized())


def test_a_matrix_without_error_stays():
    facts: dict[str, Any] = {}
    w = quantised(weights(8, 40), correlated(40)).dequantized()
    before, after = corrected(w, correlated(40), 8, facts)
    if error_of(w, before.dequantized(), correlated(40)) == 0:
        assert after.fixes == () and facts["rejected"] == 1
    assert error_of(w, after.dequantized(), correlated(40)) <= error_of(
        w, before.dequantized(), correlated(40)
    )


def test_its_bytes_are_told():
    shape = Shape(64, 2, 32, 4, 2, 2.0, 32, 32)
    rows = 2 * (32 + 16 + 16 + 32 + 64 + 32)
    assert AwqLite(AwqLite.Config(group=16)).cost(shape).artifact_bytes == 0.35 * 16 * rows + 2 * rows
