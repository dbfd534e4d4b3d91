"""What a submission says, and what the tracks refuse, from made-up runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from bundle.one_file import resolve_layer
from claims.race import loss_of
from claims.sequential import best_p
from search.study.limits import Limits
from submission.clean import reader_of
from submission.evidence import SeedRun
from submission.question import HALVED
from submission.significance import Test as Comparison
from submission.significance import p_of_three, rule_p
from submission.texts import as_json, readme
from submission.tracks import scale, shortfalls
from tests.submission.made_up_runs import LAYER, SCRIPT, clean_of, evidence_of, run_of, shipped_of

BETTER = Comparison("pr549", "paired", (-0.021, -0.020, -0.019), 0.0011, HALVED, (2.72, 2.73, 2.71))
NOT_BETTER = Comparison("pr549", "paired", (-0.006, 0.002, -0.001), 0.9, HALVED, (2.7, 2.7, 2.7))
THREE = [run_of(101, 2.70), run_of(102, 2.71), run_of(103, 2.69)]


def test_a_record_that_holds_says_what_was_measured() -> None:
    e = evidence_of(test=BETTER)
    assert shortfalls(e) == []
    text = readme(e, shipped_of())
    assert text.startswith(
        "# Tiny but honest\n\n**val_bpb 2.70000** (mean of 3 seeds, standard deviation 0.01000)"
    )
    assert f"| 102 | 2.71000 | 4.69607 | 100 | 9.8 | 4.2 | {len(SCRIPT)} + 250,000 = 250,037 |" in text
    xsa = next(line for line in text.splitlines() if line.startswith("| `xsa` |"))
    assert "last_n=2" in xsa and "arXiv:2603.09078" in xsa
    assert (
        "| `num_layers` | 3 | preset `laptop` |" in text and "| `num_threads` | 1 | preset `laptop` |" in text
    )
    assert "is 0.02000 nats per token lower than pr549" in text and "**holds**" in text
    assert "ran here on the same seeds, in the same order: val_bpb 2.72000, 2.73000, 2.71000" in text
    assert "`sliding_window` claims a strict prefix" in text and "every later token replaced" in text
    assert "validation tokens by evaluate/sliding_window, evaluate/audit; findings on all seeds: none" in text
    assert "| packed | 2.76000 | +0.01000 |" in text and "| sliding_window | 2.70000 | -0.06000 |" in text
    assert "TOKENIZER_PATH=embedded_1024_bpe.model python -I train_gpt.py" in text
    assert "somewhere" not in text  # no place of this machine
    assert " nan" not in text and "None" not in text


def test_laptop_scale_is_told_as_what_it_is() -> None:
    e = evidence_of(test=BETTER)
    assert "Measured on Some CPU, 2 cores, 1 thread" in scale(e) and "not the challenge's scale" in scale(e)
    assert as_json(e)["track"] == "local_record" and as_json(e)["compliance"]["challenge_scale"] is False
    whole = replace(
        e,
        resolved=resolve_layer({**LAYER, "val_tokens": 0, "data_path": "data/datasets/fineweb10B_sp1024"}),
        about=replace(e.about, hardware="8 x NVIDIA H100 80GB HBM3"),
        runs=[run_of(run.seed, run.of("val_bpb"), proxy=False) for run in THREE],
    )
    assert "not the challenge's scale" not in scale(whole) and as_json(whole)["track"] == "10min_16mb"
    other = replace(whole, about=replace(whole.about, hardware="8 x NVIDIA H200"))
    assert as_json(other)["track"] == "local_record" and "not the challenge's scale" in scale(other)
    free = replace(other, about=replace(other.about, track="non-record"))
    assert as_json(free)["track"] == "non_record_16mb"


def test_submission_json_has_the_keys_of_records() -> None:
    told = as_json(evidence_of(test=BETTER))
    wanted = (
        "author github_id name blurb date track val_bpb val_bpb_std val_loss seeds seed_results hardware "
        "pytorch_version bytes_total bytes_code technique_summary attribution compliance"
    )
    assert set(wanted.split()) <= set(told)
    assert told["val_bpb"] == pytest.approx(2.7) and told["val_bpb_std"] == pytest.approx(0.01)
    assert told["seeds"] == [101, 102, 103] and set(told["seed_results"]) == {"101", "102", "103"}
    assert told["bytes_total"] == 250_037 and told["bytes_code"] == len(SCRIPT)
    assert told["seed_results"]["103"]["artifact_bytes"] == 250_037
    assert all(
        told["compliance"][name] for name in ("artifact_under_16mb", "train_under_600s", "three_seeds")
    )
    assert told["record"]["p_value"] == BETTER.p and "xsa (last_n=2" in told["technique_summary"]


def with_last(**changes: Any) -> list[SeedRun]:
    """Three runs, the third changed."""
    return [*THREE[:2], run_of(103, 2.69, **changes)]


@pytest.mark.parametrize(
    ("runs", "changes", "says", "non_record"),
    [
        (
            [*THREE[:2], SeedRun(103, "diverged: nan", {})],
            {},
            "score: seed 103 has none (diverged: nan)",
            True,
        ),
        (THREE, {"limits": Limits(250_000, 600, 600)}, "artifact, 250,037 of 250,000 bytes", True),
        (with_last(train_seconds=700.0), {}, "seconds: seed 103: training, 700.0 of 600 s", False),
        (with_last(eval_seconds=601.0), {}, "seconds: seed 103: evaluation, 601.0 of 600 s", False),
        (
            with_last(record_legal=False, findings=["evaluate: a forbidden read"]),
            {},
            "legality: seed 103: evaluate: a forbidden read",
            True,
        ),
        (THREE, {"test": NOT_BETTER}, "significance: val_loss is 0.00167 nats per token lower", False),
        (THREE, {"test": None}, "significance: no record was named", False),
        (THREE[:2], {}, "significance: 2 seeds have a score, at least 3", False),
        (
            [replace(THREE[0], log=THREE[1].log), *THREE[1:]],
            {"clean": ()},
            "log of seed 101 does not tell",
            True,
        ),
        (THREE, {"clean": [clean_of(THREE[0], val_bpb=2.70000001)]}, "val_bpb 2.70000001 instead of", True),
        (
            THREE,
            {"clean": [clean_of(THREE[0], sha256="f" * 64)]},
            "the packed model is ffffffffffffffff",
            True,
        ),
        (THREE, {"clean": [clean_of(THREE[0], model_bytes=1)]}, "has 1 bytes instead of 250,000", True),
        (THREE, {"script": SCRIPT + b"#"}, "the study counted 37 bytes of code, the script has 38", True),
    ],
)
def test_what_does_not_hold_is_named_with_its_numbers(
    runs: list[SeedRun], changes: dict[str, Any], says: str, non_record: bool
) -> None:
    """`non_record`: whether the free track refuses it, too."""
    given = {"test": BETTER} | changes
    script = given.pop("script", SCRIPT)
    e = replace(evidence_of(runs, **given), script=script)
    assert [line for line in shortfalls(e) if says in line], shortfalls(e)
    free = replace(e, about=replace(e.about, track="non-record"))
    assert bool(shortfalls(free)) is non_record, shortfalls(free)


def test_every_shortfall_is_told_at_once() -> None:
    runs = with_last(train_seconds=700.0, record_legal=False, findings=["odd"])
    e = evidence_of(runs, test=NOT_BETTER, limits=Limits(1_000, 600, 600))
    assert [line.split(":")[0] for line in shortfalls(e)] == [
        *["bytes"] * 3,
        "seconds",
        "legality",
        "significance",
    ]


def test_a_contested_technique_is_submitted_on_no_track() -> None:
    slot = resolve_layer({**LAYER, "sliding_window": False, "slot": True})
    for track in ("record", "non-record"):
        e = replace(evidence_of(test=BETTER, track=track), resolved=slot)
        assert [line for line in shortfalls(e) if line.startswith("legality: slot is contested (")]


def test_another_device_may_differ_within_what_is_stated() -> None:
    runs = [run_of(run.seed, run.of("val_bpb"), device_type="cuda") for run in THREE]
    near = evidence_of(
        runs, test=BETTER, clean=[clean_of(runs[0], val_bpb=2.7019, model_bytes=251_000, sha256="f")]
    )
    assert shortfalls(near) == [] and "equal within 0.002 BPB and 0.5% of" in readme(near, shipped_of())
    far = evidence_of(runs, test=BETTER, clean=[clean_of(runs[0], val_bpb=2.7021)])
    assert shortfalls(far) == [
        "clean process: seed 101: val_bpb 2.70210 instead of 2.70000, 0.002 are allowed"
    ]


def test_the_free_track_says_what_it_allows() -> None:
    e = evidence_of([run_of(101, 2.7, train_seconds=700.0)], track="non-record", test=None)
    text = readme(e, shipped_of())
    assert "**Training**: the largest is 700.0, allowed are 600 s: over it, which this track allows." in text
    assert "Against the record" not in text and as_json(e)["compliance"]["train_under_600s"] is False
    assert "(one seed)" in text and " nan" not in text
    assert "NaN" not in json.dumps(as_json(e)) and as_json(e)["val_bpb_std"] is None


def test_the_rule_does_not_hold_over_a_limit() -> None:
    """Which the free track allows."""
    e = evidence_of(
        [run_of(101 + k, 2.7, train_seconds=700.0) for k in range(3)], track="non-record", test=BETTER
    )
    text = readme(e, shipped_of())
    assert "**does not hold**: a limit is not kept (Compliance)." in text and "**holds**" not in text
    assert "**holds**." in readme(evidence_of(test=BETTER), shipped_of())


def test_a_technique_that_did_nothing_is_told() -> None:
    idle = {"xsa": {"verdict": "inactive: no layer"}, "sliding_window": {"verdict": "active"}}
    text = readme(evidence_of(with_last(activity=idle), test=BETTER), shipped_of())
    assert "| `xsa` (inactive: no layer) | last_n=2" in text


def test_caseops_data_are_named() -> None:
    text = readme(evidence_of(test=BETTER), shipped_of(sidecars=["fineweb_val_bytes_000000.bin"]))
    assert "bytes of each validation token: `fineweb_val_bytes_000000.bin`" in text


def test_a_log_counts_the_folders_script() -> None:
    """Of a seed that the script does not hold."""
    other = run_of(102, 2.71, code_bytes=99, artifact_bytes=250_099)
    e = evidence_of([THREE[0], other], test=BETTER)
    reader = reader_of(e.log_of(other))
    assert (reader.code_bytes, reader.artifact_bytes()) == (len(SCRIPT), 250_037)
    assert reader.value()[1:] == (2.71, pytest.approx(other.of("val_loss"), abs=1e-8))
    assert (reader.steps, reader.train_seconds(0)[0], reader.eval_seconds(0)[0]) == (100, 9.8, 4.2)
    assert e.log_of(THREE[0]).startswith("all the sources")  # of the clean process, as it wrote it


def test_p_is_what_confirm_computes() -> None:
    nats = [-0.021, -0.020, -0.019, -0.022, -0.0205]
    assert rule_p(nats) == best_p(nats, -0.005) and rule_p(nats, questions=3) == 3 * best_p(nats, -0.005)
    t = (-0.02 + 0.005) * math.sqrt(3) / 0.001
    assert p_of_three(nats[:3]) == pytest.approx(
        0.5 * (1 - abs(t) / math.sqrt(2 + t * t))
    )  # Student's, 2 degrees
    assert rule_p(nats[:3]) == 2 * p_of_three(nats[:3]) < 0.01
    assert rule_p(nats, early=True) == 2 * min(best_p(nats, -0.005), p_of_three(nats[:3]))
    assert (
        rule_p(nats[:2]) == rule_p([]) == 1.0 and rule_p([-0.004] * 3) == 1.0 and rule_p([-0.006] * 3) < 1e-9
    )


def test_a_record_at_the_margin_is_rarely_claimed() -> None:
    """Three seeds, then as many more as one likes: at most one in a hundred."""
    import numpy as np

    draws = np.random.default_rng(5).normal(-0.005, 0.001, (2000, 12))
    claimed = [any(rule_p(d[:n], early=True) < 0.01 for n in (3, 6, 12)) for d in draws]
    assert np.mean(claimed) <= 0.01 + 3 * math.sqrt(0.01 * 0.99 / 2000)


def test_nats_of_a_figure() -> None:
    assert loss_of(2.7, THREE[0].result) == pytest.approx(THREE[0].of("val_loss"))
    told = THREE[0].result  # at the bytes per token of the run
    expected = 2.5 * math.log(2.0) * told["val_bytes"] / told["val_tokens"]
    assert loss_of(2.5, told) == pytest.approx(expected)
