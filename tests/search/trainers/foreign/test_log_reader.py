"""The log reader: which line counts is a rule; an independent slow reader agrees on random logs."""

from __future__ import annotations

import math
import random
import re

import pytest

from search.trainers.foreign.log_reader import KNOWN_SCORES, LogError, LogReader, Rules, label_of, numbers

BASELINE = """
val_bpb:enabled tokenizer_kind=sentencepiece tokenizer_path=x
model_params:17059912
train_batch_tokens:524288 train_seq_len:1024 iterations:20000 warmup_steps:20 max_wallclock_seconds:600.000
step:0/20000 val_loss:6.9357 val_bpb:4.1077 train_time:0ms step_avg:0.01ms
step:200/20000 train_loss:2.8 train_time:8600ms step_avg:43.00ms
step:13780/20000 val_loss:2.0606 val_bpb:1.2204 train_time:600038ms step_avg:43.54ms
stopping_early: wallclock_cap train_time:600039ms step:13780/20000
peak memory allocated: 10184 MiB reserved: 10200 MiB
Serialized model: 67224983 bytes
Code size: 47642 bytes
Total submission size: 67272625 bytes
Serialized model int8+zlib: 15815847 bytes (payload:17178912 raw_torch:17224025 payload_ratio:3.91x)
Total submission size int8+zlib: 15863489 bytes
final_int8_zlib_roundtrip val_loss:2.0727 val_bpb:1.2244 eval_time:1401ms
final_int8_zlib_roundtrip_exact val_loss:2.07269931 val_bpb:1.22436570
"""
STACK = """
DIAGNOSTIC post_ema val_loss:1.9 val_bpb:1.13 eval_time:2000ms
final_int6_roundtrip val_loss:1.93 val_bpb:1.143 eval_time:9000ms
final_int6_roundtrip_exact val_loss:1.93 val_bpb:1.14310000
final_int6_sliding_window val_loss:1.9 val_bpb:1.1194 stride:64 eval_time:74000ms
final_int6_sliding_window_exact val_loss:1.9 val_bpb:1.11940000
final_int8_zlib_roundtrip_exact val_loss:1.9 val_bpb:1.11940000
legal_ttt val_loss:1.89 val_bpb:1.1171 eval_time:409000ms
legal_ttt_exact val_loss:1.89 val_bpb:1.11710000
"""


def read(text: str, **rules: object) -> LogReader:
    reader = LogReader(Rules(**rules))  # type: ignore[arg-type]
    for at, line in enumerate(text.splitlines()):
        reader.feed(line, float(at))
    return reader


def test_the_published_baseline_log():
    reader = read(BASELINE)
    assert reader.value() == ("final_int8_zlib_roundtrip_exact", 1.2243657, 2.07269931)
    assert reader.train_seconds(999.0) == (600.039, "train_time")
    assert reader.eval_seconds(999.0) == (1.401, "eval_time")
    assert reader.artifact_bytes() == 15863489 and reader.code_bytes == 47642
    assert reader.params == 17059912 and reader.steps == 13780 and reader.wallclock_s == 600.0
    assert reader.peak_memory_bytes == 10184 * 2**20 and not reader.failure


def test_several_scores_without_a_rule_are_an_error_that_lists_them():
    with pytest.raises(LogError, match="ambiguous score") as error:
        read(STACK).value()
    for label in ("legal_ttt_exact", "final_int6_sliding_window_exact", "final_int8_zlib_roundtrip_exact"):
        assert label in str(error.value)


def test_the_first_label_of_the_rule_that_was_printed_counts_wherever_it_stands():
    rule = ("legal_ttt_exact", "final_int6_sliding_window_exact")
    assert read(STACK, score=rule).value()[:2] == ("legal_ttt_exact", 1.1171)
    without = "\n".join(line for line in STACK.splitlines() if "legal_ttt" not in line)
    assert read(without, score=rule).value()[1] == 1.1194
    backwards = "\n".join(reversed(STACK.splitlines()))
    assert read(backwards, score=rule).value()[1] == 1.1171
    with pytest.raises(LogError, match="none of 'x' was printed"):
        read(STACK, score=("x",)).value()


def test_an_unknown_label_alone_must_be_named():
    line = "my_score val_loss:1.0 val_bpb:1.5"
    with pytest.raises(LogError, match="lines with a val_bpb: 'my_score'"):
        read(line).value()
    assert read(line, score=("my_score",)).value() == ("my_score", 1.5, 1.0)


def test_a_label_with_different_values_needs_an_occurrence():
    text = "legal_ttt val_bpb:1.3\nlegal_ttt val_bpb:1.2\nlegal_ttt val_bpb:1.1"
    with pytest.raises(LogError, match=r"different values, 1\.3 first and 1\.1 last"):
        read(text).value()
    assert read(text, occurrence="first").value()[1] == 1.3
    assert read(text, occurrence="last").value()[1] == 1.1
    assert read("legal_ttt val_bpb:1.3\nlegal_ttt val_bpb:1.3").value()[1] == 1.3


def test_source_code_at_the_head_of_a_log_scores_nothing():
    source = 'legal_ttt_exact val_bpb:0.5\nlog0(f"final_int6_roundtrip_exact val_bpb:{x:.8f}")\n'
    assert read(source + "=" * 100 + BASELINE).value()[1] == 1.2243657


def test_evaluation_seconds():
    assert read(STACK, score=("legal_ttt_exact",)).eval_seconds(0.0)[0] == 9 + 74 + 409
    assert read(STACK, eval_lines=("legal_ttt",)).eval_seconds(0.0)[0] == 409.0
    assert read(STACK + "total_eval_time:455.2s").eval_seconds(0.0) == (455.2, "total_eval_time")
    with pytest.raises(LogError, match="no evaluation time"):
        read(STACK, eval_lines=("nobody",)).eval_seconds(0.0)
    clock = read("step:1/1 train_loss:1.0\n\n\nlegal_ttt val_bpb:1.0")
    assert clock.eval_seconds(9.0) == (3.0, "clock") and clock.train_seconds(9.0) == (0.0, "clock")


def test_sizes():
    two = "Total submission size int8+zlib: 10 bytes\nTotal submission size int6+zstd: 9 bytes\n"
    with pytest.raises(LogError, match="ambiguous size"):
        read(two).artifact_bytes()
    assert read(two, size="int6+zstd").artifact_bytes() == 9
    assert read("Total submission size: 1,234 bytes").artifact_bytes() == 1234
    assert read(two, size="other").artifact_bytes() is None and read("").artifact_bytes() is None


@pytest.mark.parametrize("word", ["nan", "NaN", "inf", "-inf"])
def test_a_loss_that_is_no_number_ends_the_run(word: str):
    assert "at step 7" in read(f"step:7/9 train_loss:{word} train_time:1ms").failure


def test_reports_stand_on_the_grid_and_between_near_validations():
    lines = [f"step:{s}/100 val_loss:1 val_bpb:{5 - s / 100:.4f} train_time:{s}ms" for s in range(0, 101, 10)]
    reader = LogReader(Rules(num_reports=4, warmdown_iters=40))
    found = [r for at, line in enumerate(lines) for r in reader.feed(line, float(at))]
    assert [round(r["progress"], 3) for r in found] == [0.25, 0.5, 0.75]
    assert [round(r["val_bpb"], 4) for r in found] == [4.75, 4.5, 4.25]
    assert [round(r["lr_scale"], 3) for r in found] == [1.0, 1.0, 0.625]
    sparse = LogReader(Rules(num_reports=4))
    lines = ["step:0/100 val_bpb:9.0", "step:40/100 val_bpb:2.0", "step:100/100 val_bpb:1.0"]
    assert [
        r for line in lines for r in sparse.feed(line, 0.0)
    ] == []  # the steep start is never interpolated


def test_progress_and_warm_down_by_the_clock():
    reader = LogReader(Rules(num_reports=2, wallclock_s=10.0, warmdown_iters=100))
    reader.feed("step:20/1000 val_bpb:3.0 train_time:1000ms", 0.0)
    (report,) = reader.feed("step:100/1000 val_bpb:2.0 train_time:5000ms", 0.0)
    assert report["progress"] == 0.5 and report["lr_scale"] == 1.0  # 5 s left are 100 steps of 50 ms
    share = LogReader(Rules(num_reports=2, warmdown_frac=0.8))
    (report,) = share.feed("step:50/100 val_bpb:2.0", 0.0)
    assert report["lr_scale"] == pytest.approx(0.625)


def test_memory_is_bounded_whatever_is_printed():
    reader = LogReader(Rules())
    for i in range(5000):
        reader.feed(f"label{i} val_bpb:1.0 eval_time:1ms", 0.0)
        reader.feed(f"Total submission size c{i}: 5 bytes", 0.0)
    assert len(reader.scores) == len(reader.sizes) == len(reader.eval_s) == 64
    assert len(label_of("x " * 5000 + "val_bpb:1")) == 80


def test_random_logs_agree_with_a_slow_reader():
    rng = random.Random(5)
    names = [*KNOWN_SCORES[:3], "DIAGNOSTIC post_ema", "other"]
    for _ in range(200):
        lines: list[str] = []
        for _ in range(rng.randrange(12)):
            name = rng.choice(names) + rng.choice(["", "_exact"])
            value = rng.choice([1.25, 1.5, 1.125])
            noise = rng.choice(["", " stride:64", " eval_time:10ms"])
            lines.append(rng.choice(["", "[rank0]: "]) + f"{name} val_loss:2.0 val_bpb:{value}{noise}")
            lines.append(rng.choice(["noise", "val_bpb:enabled x=1", f"step:3/9 val_bpb:{value}", "a:b c:d"]))
        rule = tuple(rng.sample([n + e for n in names for e in ("", "_exact")], 2))
        assert outcome("\n".join(lines), rule) == slow("\n".join(lines), rule)


def outcome(text: str, rule: tuple[str, ...]) -> float | None:
    try:
        return read(text, score=rule).value()[1]
    except LogError:
        return None


def slow(text: str, rule: tuple[str, ...]) -> float | None:
    """One regular expression for each label, over the whole text."""
    for label in rule:
        pattern = rf"^(?:\[rank0\]: )?{re.escape(label)} val_loss:\S+ val_bpb:([\d.]+)"
        values = {float(v) for v in re.findall(pattern, text, re.MULTILINE)}
        if values:
            return values.pop() if len(values) == 1 else None
    return None


def test_numbers():
    found = numbers("a:1.5 b:20ms c: 3s d:1,234 e:nan f:x g:1e-3 h:enabled 2026-01-01 10:20:30")
    assert found.pop("e") != found.get("e") and not math.isfinite(numbers("e:nan")["e"])
    assert found == {"a": 1.5, "b": 0.02, "c": 3.0, "d": 1234.0, "g": 0.001}
