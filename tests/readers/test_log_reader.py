"""The log reader: which line counts is a rule; an independent slow reader agrees on random logs."""

from __future__ import annotations

import math
import random
import re
import time

import pytest

from readers.log_reader import KNOWN_SCORES, LogError, LogReader, Rules, label_of, numbers

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


def test_without_a_rule_the_last_final_score_counts_and_what_beats_it_is_an_error_that_lists_them():
    assert read(STACK).value() == ("legal_ttt_exact", 1.1171, 1.89)
    worse = STACK.replace("1.1171", "1.2171")
    with pytest.raises(LogError, match="ambiguous score") as error:
        read(worse).value()
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


def test_an_unknown_label_counts_as_any_other_and_a_diagnostic_never():
    line = "my_score val_loss:1.0 val_bpb:1.5"
    assert read(line).value() == ("my_score", 1.5, 1.0)
    with pytest.raises(LogError, match=r"lines with a val_bpb: 'pre-quantization post-ema' 1\.1000"):
        read("pre-quantization post-ema val_loss:1.0 val_bpb:1.1").value()
    assert read(line, score=("my_score",)).value() == ("my_score", 1.5, 1.0)


def test_a_label_with_different_values_needs_an_occurrence():
    text = "legal_ttt val_bpb:1.3\nlegal_ttt val_bpb:1.2\nlegal_ttt val_bpb:1.1"
    with pytest.raises(LogError, match=r"different values, 1\.3 first and 1\.1 last"):
        read(text).value()
    with pytest.raises(LogError, match=r"1\.1 first and 1\.1 last, 1\.2 between"):
        read("legal_ttt val_bpb:1.1\n" + text).value()
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
    # the steep start is never interpolated; a validation that stands alone is told where it stands
    told = [r for line in lines for r in sparse.feed(line, 0.0)]
    assert [(r["progress"], r["val_bpb"], r["step"]) for r in told] == [(0.4, 2.0, 40)]


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
        found = [*re.finditer(pattern, text, re.MULTILINE)]
        values = {float(m[1]) for m in found}
        if values:
            value = values.pop()
            after = text[found[-1].end() :]
            late = dict(re.findall(r"(?m)^(?:\[rank0\]: )?(other(?:_exact)?) .*val_bpb:([\d.]+)", after))
            unlisted = not any(name.startswith("other") for name in rule)
            unknown = unlisted and any(float(v) != value for v in late.values())
            return None if values or unknown else value
    return None


def test_numbers():
    found = numbers("a:1.5 b:20ms c: 3s d:1,234 e:nan f:x g:1e-3 h:enabled 2026-01-01 10:20:30")
    assert found.pop("e") != found.get("e") and not math.isfinite(numbers("e:nan")["e"])
    assert found == {"a": 1.5, "b": 0.02, "c": 3.0, "d": 1234.0, "g": 0.001}


def test_an_unknown_score_that_comes_later_is_never_fallen_past():
    text = "final_int8_zlib_roundtrip_exact val_bpb:1.2284\nfinal_lora val_bpb:1.1935"
    assert read(text).value()[:2] == ("final_lora", 1.1935)
    rule = ("final_new_lora", "final_int8_zlib_roundtrip_exact")
    with pytest.raises(LogError, match=r"'final_lora' came later than .* not in `score`"):
        read(text, score=rule).value()
    assert read(text, score=(*rule, "final_lora")).value()[1] == 1.2284  # listed behind: it does not count
    with pytest.raises(LogError, match="came later"):  # a label whose parameter differs from the rule's
        read(
            "final_int6_roundtrip val_bpb:1.12\nslot_k8 val_bpb:0.48",
            score=("slot_k4", "final_int6_roundtrip"),
        ).value()


def test_the_order_of_printing_counts_not_the_name():
    text = "legal_ttt_exact val_bpb:1.19\nfinal_int8_zlib_roundtrip_exact val_bpb:1.15"
    assert read(text).value()[:2] == ("final_int8_zlib_roundtrip_exact", 1.15)
    again = "final_roundtrip val_bpb:1.2\nfinal_slot val_bpb:1.1\nfinal_roundtrip val_bpb:1.1"
    assert read(again).value()[:2] == ("final_slot", 1.1)  # the other is an alias of every stage
    packed = "swa_model val_bpb:1.10\nTotal submission size int6+zlib: 9 bytes\nquantized val_bpb:1.12"
    assert read(packed).value()[1] == 1.12 and read(packed).artifact_bytes() == 9


def test_labels_with_parameters_and_without_a_name():
    text = "win_exact stride:256 val_loss:2.0 val_bpb:1.19\nwin_exact stride:64 val_loss:1.9 val_bpb:1.16"
    assert read(text).value() == ("win_exact stride:64", 1.16, 1.9)
    with pytest.raises(LogError, match="'win_exact' is 'win_exact stride:256', 'win_exact stride:64'"):
        read(text, score=("win_exact",)).value()
    assert read(text, score=("win_exact stride:256", "win_exact")).value()[1] == 1.19
    assert read("rt sliding val_loss:2.0 sliding val_bpb:1.1").value()[:2] == ("rt sliding", 1.1)
    assert read("---\nval_bpb:   1.5").value()[:2] == ("", 1.5)
    assert read("TTT BPB: 1.0787").value()[:2] == ("TTT BPB", 1.0787)
    assert read("ttt:done val_loss=1.89, val_bpb=1.12, elapsed=405.0s").value() == ("ttt:done", 1.12, 1.89)
    sweep = "".join(f"alpha={a} val_bpb:{1.2 - a}\n" for a in (0.1, 0.2, 0.3))
    with pytest.raises(LogError, match="as one of several competes"):
        read(sweep).value()


@pytest.mark.parametrize(
    ("line", "under_way"),
    [
        ("ttt_chunk [3/9] bpb=1.1", True),
        ("eval 40% val_bpb:1.1", True),
        ("quant_delta val_bpb:0.01", False),
        ("running val_bpb:1.2", False),
        ("best_bpb: 1.0", False),
    ],
)
def test_running_figures_and_differences_are_no_scores(line: str, under_way: bool):
    text = "final val_bpb:1.3\n" + line
    assert [*read(text).scores] == ["final"]
    assert read(text, score=("final",)).value()[:2] == ("final", 1.3)
    if under_way:
        with pytest.raises(LogError, match=r"no score: .* is the last"):
            read(text).value()
    else:
        assert read(text).value()[:2] == ("final", 1.3)


@pytest.mark.parametrize("word", ["0.0", "-1.2", "65.0"])
def test_an_impossible_bpb_is_an_error_by_name(word: str):
    with pytest.raises(LogError, match="impossible score: 'legal_ttt' says"):
        read(f"final_int6_roundtrip val_bpb:1.2\nlegal_ttt val_bpb:{word}").value()
    assert read("legal_ttt val_bpb:12.5").value()[1] == 12.5  # untrained, but possible


BEFORE = [
    "",
    "\x1b[32m",
    "[rank0]: ",
    "1776142719.307 ",
    "[05:12:01] ",
    "[2026-03-23 04:14:29] INFO: ",
    "12:01:02,123 - INFO - ",
    "[default0]:",
    "[rank0]:[2026-03-23 04:14:29] ",
    "INFO:__main__:",
    "2026-03-23 04:14:29.123 | INFO     | train:main:55 - ",
]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("step", ["step:", "", "step "])
def test_steps_with_and_without_their_name_and_with_anything_before_them(before: str, step: str):
    lines = [
        "max_wallclock_seconds: 600.0",
        f"{step}0/1000 val_loss: 9.0 val_bpb: 3.5",
        f"{step}400/1000 train_loss: 2.9 train_time: 4.0m tok/s: 6000000",
        f"{step}450/1000 val_loss: 2.87 val_bpb: 1.11",
        f"{step}900/1000 train_loss: 2.8 train_time: 590000ms",
        "total_eval_time:12.5s",
        "quantized val_loss:2.8 val_bpb:1.08 eval_time:900ms",
    ]
    reader = LogReader(Rules(num_reports=8))
    told = [r for at, line in enumerate(lines) for r in reader.feed(before + line + "\x1b[0m", float(at))]
    assert [(r["progress"], r["val_bpb"]) for r in told] == [(0.45, 1.11)]  # between the grid's 0.375 and 0.5
    assert (reader.steps, reader.train_loss, reader.train_s) == (900, 2.8, 590.0)
    assert reader.value()[:2] == ("quantized", 1.08) and reader.eval_seconds(0.0) == (12.5, "total_eval_time")
    reader.feed(f"{before}{step}901/1000 train_loss: nan", 9.0)
    assert "nan at step 901" in reader.failure


@pytest.mark.parametrize("before", ["epoch 1 ", "[Epoch 2/3] ", "2026-03-23T04:14:29Z INFO epoch:1 | "])
def test_an_epoch_before_a_step_is_passed_over_and_one_before_a_score_is_not(before: str):
    reader = LogReader(Rules())
    assert len(reader.feed(before + "step=5/9, val_loss=2.0, val_bpb=1.2", 1.0)) == 1 and reader.steps == 5
    assert [*read("epoch 3 val_bpb:1.2").scores] == ["epoch 3"]


def test_lines_with_a_step_alone_are_early_bpb_and_the_error_says_so():
    run = "".join(f"step:{k}/4 val_loss:2.{9 - k} val_bpb:1.{9 - k}\n" for k in range(1, 5))
    with pytest.raises(LogError, match="only lines with a step tell a val_bpb"):
        read(run, num_reports=2).value()


def test_the_last_of_two_runs_in_one_log_counts_unless_it_is_worse_and_an_unfinished_one_has_no_score():
    run = "step:0/9 val_loss:7.0 val_bpb:4.1\nstep:9/9 train_loss:2.0 train_time:9ms\n"
    first = "final val_bpb:1.2\nTotal submission size a: 7 bytes\n"
    second = "final val_bpb:1.3\n"
    with pytest.raises(LogError, match=r"two runs in one log, 'final' was 1\.2 and is 1\.3"):
        read(run + first + run + second).value()
    assert read(run + first + run + second, occurrence="last").value()[1] == 1.3
    assert read(run + first + run + "final val_bpb:1.1").value()[1] == 1.1
    assert read(run + first + run + "other val_bpb:1.3").value()[1] == 1.3  # a rehearsal with another name
    assert read(run + first + run + second).sizes == {}
    with pytest.raises(LogError, match="no score"):
        read(run + first + run).value()


def test_an_evaluation_that_broke_off_leaves_no_score_unless_one_is_named():
    text = "rt val_bpb:1.17\n  ttt_chunk [11/19] bpb=1.167059 time=267.7s"
    with pytest.raises(LogError, match=r"no score: 'ttt_chunk' at 11/19 is the last.* before it: 'rt' 1\.17"):
        read(text).value()
    with pytest.raises(LogError, match="no score: 'eval' at 40%"):
        read("rt val_bpb:1.17\neval 40% val_bpb:1.1").value()
    assert read(text, score=("rt",)).value()[1] == 1.17
    assert read(text + "\nttt_chunk [19/19] bpb=1.16").value()[1] == 1.17  # its result was not printed
    assert read(text + "\nlegal_ttt val_bpb:1.16").value()[1] == 1.16


def test_a_named_score_survives_noise_and_other_size_lines_are_read():
    noise = "".join(f"noise{'x' * i} val_bpb:2.0\n" for i in range(70))
    reader = read("mine val_bpb:1.5\n" + noise, score=("mine", "noise"))
    assert "mine" in reader.scores and len(reader.scores) == 64
    assert read("artifact:15.94MB code:9\ntotal:15943643 (15.94 MB)").artifact_bytes() == 15943643
    assert read("budget:15943643/16000000 (15.94/16.00MB) FITS").artifact_bytes() == 15943643
    assert read("INT6+zlib model: 5 bytes | Total submission: 15,000 bytes").artifact_bytes() == 15000


def test_variants_with_an_artifact_each_compete():
    text = "Total submission size a: 9 bytes\nv66 val_bpb:1.14\n"
    text += "Total submission size b: 8 bytes\nv64 val_bpb:1.21"
    with pytest.raises(LogError, match="'v64' was printed last, but 'v66' competes"):
        read(text).value()


def test_a_summary_that_repeats_earlier_scores_changes_nothing():
    text = "rt val_bpb:1.18\nsliding val_bpb:1.15\nsliding_bpb: 1.15\nint6_bpb: 1.18\n"
    assert read(text + "size_gap_from_ema val_bpb:0.01").value()[:2] == ("sliding", 1.15)
    assert read("rt val_bpb:1.18003\nrt val_bpb:1.18").value()[1] == 1.18  # rounding


def test_seen_says_what_is_missing():
    assert "no early BPB: nothing will be pruned" in read("final val_bpb:1.2").seen()
    assert "no size line" in read("final val_bpb:1.2").seen() and "no size line" not in read(BASELINE).seen()


@pytest.mark.parametrize(
    "line",
    [
        *("Code size: , bytes", "Total submission size x: ,, bytes", "total:,,,,, bytes"),
        *("model_params:inf", "model_params:1e999", "total_eval_time:nan", "max_wallclock_seconds:nan"),
        *("peak memory allocated: " + "9" * 6000 + " MiB", "Total submission size: " + "9" * 6000 + " bytes"),
        *("step:" + "9" * 5000 + " train_loss:1", "stopping_early: train_time:nanms"),
    ],
)
def test_figures_that_are_none_are_passed_over(line: str):
    reader = read(f"{line}\n{BASELINE}{line}")
    assert reader.value()[1] == 1.2243657 and reader.params == 17059912
    assert reader.eval_seconds(9.0)[0] == 1.401 and reader.train_seconds(9.0)[0] == 600.039
    assert reader.artifact_bytes() == 15863489 and reader.wallclock_s == 600.0


@pytest.mark.parametrize(
    "unit", ["a", "éa_", "中a", "(pid=1", "step ", "1/", "a:", "00:00:00 ", "val_bpb:1 ", "\x1b["]
)
def test_a_line_of_noise_takes_no_more_than_its_length(unit: str):
    """Twenty times what the slowest takes; one that goes back over itself takes seconds."""
    began = time.perf_counter()
    for line in (unit * (16_000 // len(unit)), "step" + " " * 16_000 + "x"):
        LogReader(Rules(score=("final",))).feed(line, 0.0)
    assert time.perf_counter() - began < 0.4
