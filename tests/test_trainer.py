"""The trainer as a user meets it: golden counts, the baseline's maths, clocks, ranks, resume, log lines, bad
input."""

import json
import math
import re
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import train_gpt
from techniques import catalog
from techniques.config import read_preset, resolve
from tests.conftest import arguments as tiny_arguments
from tests.conftest import run_trainer


def resolved(settings: dict, **more):
    return resolve({"command line": {**settings, **more}}, catalog.runtime())


def result_of(out_dir: Path) -> dict:
    return json.loads((out_dir / "result.json").read_text())


# ---- the baseline ----------------------------------------------------------------------------------------


ELEVEN = {
    "num_layers": 11,
    "mlp_mult": 3.0,
    "train_seq_len": 2048,
    "train_batch_tokens": 786_432,
    "xsa.last_n": 4,
    "xsa": True,
    "ln_scale": True,
    "ortho_init": True,
    "partial_rope": True,
    "partial_rope.dims": 16,
    "smear_gate": True,
    "smear_gate.mode": "average",
    "bigram_hash": True,
    "bigram_hash.rows": 2048,
    "bigram_hash.dim": 128,
    "value_embedding": True,
    "value_embedding.dim": 128,
    "value_embedding.last_n": 2,
}


SMALL = {k: v for k, v in ELEVEN.items() if k.partition(".")[0] not in ("bigram_hash", "smear_gate")}
WIDE = {"num_layers": 11, "mlp_mult": 4.0, "train_seq_len": 2048, "train_batch_tokens": 786_432}
LOOPED = {
    **WIDE,
    "vocab_size": 8192,
    "skip_gate": True,
    "depth_recurrence": True,
    "depth_recurrence.start": 4,
    "depth_recurrence.end": 5,
    "depth_recurrence.num_loops": 2,
}
FRONTIER = {
    **LOOPED,
    "depth_recurrence.start": 3,
    "attention_gate": True,
    "attention_gate.mode": "sparse",
    "smear_gate": True,
    "smear_gate.mode": "input_gate",
    "parallel_residual": True,
    "parallel_residual.mode": "crossed",
    "parallel_residual.start": 8,
    "parallel_residual.rows": "all",
}


@pytest.mark.parametrize(
    ("settings", "params"),
    [
        ({}, 17_059_912),  # the naive baseline
        ({**ELEVEN, "value_residual": True}, 26_993_766),  # PR #569, backout off
        ({**ELEVEN, "value_residual": True, "backout": True}, 26_993_767),
        ({**ELEVEN, "bigram_hash.rows": 2816, "bigram_hash.dim": 112}, 27_038_812),  # PR #1060
        ({**SMALL, **WIDE, "vocab_size": 4096, "skip_gate": True}, 34_401_371),  # PR #1218
        (LOOPED, 35_943_512),  # PR #1394
        (FRONTIER, 35_945_671),  # PR #1855
        (ELEVEN, 26_993_756),  # PR #414 and #518
        ({**ELEVEN, "bigram_hash.rows": 1536}, 26_928_220),  # PR #549
        ({**ELEVEN, "bigram_hash.rows": 3072, "bigram_hash.dim": 112}, 27_067_484),  # PR #1019
    ],
)
def test_golden_parameter_counts(settings: dict, params: int):
    run = resolved(settings)
    model = train_gpt.build_model(run, "meta")
    assert sum(p.numel() for p in model.parameters()) == params
    shape = run.shape()
    declared = sum(t.numel for t in shape.tensor_specs())
    assert declared + sum(t.cost(shape).params for t in run.techniques.values()) == params


class PlainBaseline:
    """The naive baseline written out with no modules and no seams: parameters in a dict, loops over heads."""

    def __init__(self, params: dict[str, torch.Tensor], config):
        self.p, self.c = params, config

    def attention(self, n: torch.Tensor, i: int) -> torch.Tensor:
        p, c = self.p, self.c
        t, d = n.shape[1:]
        dh = d // c.num_heads
        outs = []
        inverse = c.rope_base ** (-torch.arange(0, dh, 2).float() / dh)
        angle = torch.arange(t).float()[:, None] * inverse[None]

        def prepare(x):
            x = x / torch.sqrt(x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps)
            first, second = x[..., : dh // 2], x[..., dh // 2 :]
            return torch.cat(
                (first * angle.cos() + second * angle.sin(), second * angle.cos() - first * angle.sin()), -1
            )

        mask = torch.full((t, t), -torch.inf).triu(1)
        for h in range(c.num_heads):
            k = h // (c.num_heads // c.num_kv_heads)
            q = prepare(n @ p[f"blocks.{i}.attn.c_q.weight"][h * dh : (h + 1) * dh].T)
            q = q * p[f"blocks.{i}.attn.q_gain"][h]
            key = prepare(n @ p[f"blocks.{i}.attn.c_k.weight"][k * dh : (k + 1) * dh].T)
            value = n @ p[f"blocks.{i}.attn.c_v.weight"][k * dh : (k + 1) * dh].T
            outs.append(torch.softmax(q @ key.transpose(1, 2) / math.sqrt(dh) + mask, -1) @ value)
        return torch.cat(outs, -1) @ p[f"blocks.{i}.attn.proj.weight"].T

    def loss(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        p, c = self.p, self.c

        def rms(x):
            return x / torch.sqrt(x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps)

        x = x0 = rms(p["tok_emb"][ids])
        skips = []
        encoder = c.num_layers // 2
        for i in range(c.num_layers):
            if i >= encoder and skips:
                x = x + p["skip_weights"][i - encoder] * skips.pop()
            mix = p[f"blocks.{i}.resid_mix"]
            x = mix[0] * x + mix[1] * x0
            x = x + p[f"blocks.{i}.attn_scale"] * self.attention(rms(x), i)
            hidden = torch.relu(rms(x) @ p[f"blocks.{i}.mlp.fc.weight"].T) ** 2
            x = x + p[f"blocks.{i}.mlp_scale"] * (hidden @ p[f"blocks.{i}.mlp.proj.weight"].T)
            if i < encoder:
                skips.append(x)
        logits = c.logit_softcap * torch.tanh(rms(x) @ p["tok_emb"].T / c.logit_softcap)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def shifted_model(settings: dict):
    """A model with every parameter moved off its initial value: at init, zeros hide mistakes."""
    run = resolved(settings)
    model = train_gpt.build_model(run)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return run, model


@pytest.mark.parametrize(("layers", "kv_heads"), [(1, 2), (4, 1), (5, 2)])
def test_model_and_gradients_equal_the_plain_baseline(tiny, layers: int, kv_heads: int):
    run, model = shifted_model({**tiny, "num_layers": layers, "num_kv_heads": kv_heads})
    ids = torch.randint(0, 320, (2, 32), generator=torch.Generator().manual_seed(2))
    targets = ids.roll(-1, 1)
    plain = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    loss, expected = model(ids, targets), PlainBaseline(plain, run.config).loss(ids, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    for name, p in model.named_parameters():
        if plain[name].grad is not None:
            torch.testing.assert_close(p.grad, plain[name].grad, rtol=2e-3, atol=2e-5, msg=name)


def test_muon_step_equals_the_written_out_update(tiny):
    run, model = shifted_model(tiny)
    world = train_gpt.World(run.config)
    weight: Any = dict(model.named_parameters())["blocks.0.mlp.fc.weight"]
    start = weight.detach().clone()
    gradients = [torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    muon = train_gpt.Muon([weight], 0.04, train_gpt.Hyper(), world, torch.float32)
    expected, buf = start.clone(), torch.zeros_like(start)
    for g in gradients:
        weight.grad = g.clone()
        muon.step()
        buf = 0.95 * buf + g
        x = (g + 0.95 * buf).T  # mlp.fc is tall
        x = x / x.norm()
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        expected -= 0.04 * math.sqrt(max(1, start.size(0) / start.size(1))) * x.T
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-5)


def test_baseline_warmdown_by_steps_and_by_seconds():
    steps = resolved({"max_wallclock_seconds": 0, "iterations": 100, "warmdown_iters": 40}).config
    scale = [train_gpt.baseline_lr_scale(train_gpt.Moment(s, 0.0, steps)) for s in (0, 60, 80, 100)]
    assert scale == [1.0, 1.0, 0.5, 0.0]
    seconds = resolved({"max_wallclock_seconds": 600, "warmdown_iters": 1200}).config
    # at 50 ms a step the warm-down takes the last 60 s
    assert train_gpt.baseline_lr_scale(train_gpt.Moment(10_000, 500.0, seconds)) == 1.0
    assert train_gpt.baseline_lr_scale(train_gpt.Moment(11_400, 570.0, seconds)) == pytest.approx(0.5)


@pytest.mark.parametrize(("queued", "ends"), [(0, 8.0), (1, 7.0)])
def test_a_step_that_might_overrun_the_budget_is_not_begun(queued, ends):
    """Room for twice the slowest step and for those that the device still works on."""
    trainer: Any = object.__new__(train_gpt.Trainer)
    trainer.config, trainer.step, trainer.recent = resolved({"max_wallclock_seconds": 10}).config, 0, [0.0]
    trainer.clock = SimpleNamespace(now=lambda: now)
    trainer.world = SimpleNamespace(keep_pace=lambda: queued, max=lambda value: value)
    for now in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0):
        moment, room = trainer.moment()
        assert moment.elapsed_s == now and room == (now < ends)
    trainer.recent, now = [0.0, 3.0], 4.0  # one step took three seconds
    assert not trainer.moment()[1]
    trainer.config, now = resolved({"max_wallclock_seconds": 0, "iterations": 5}).config, 1e9
    assert trainer.moment()[1] and trainer.moment()[0].progress == 0.0


# ---- runs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    """One finished run with reports and warm-up."""
    from tests.conftest import TINY_MODEL

    out = tmp_path_factory.mktemp("finished")
    settings = {**TINY_MODEL, **tiny_data, "num_reports": "3", "out_dir": str(out)}
    done = run_trainer(settings)
    assert done.returncode == 0, done.stderr
    return settings, out, done


def test_a_run_prints_the_standard_lines_and_writes_every_contract_file(finished):
    _, out, done = finished
    lines = done.stdout.splitlines()
    for pattern in [
        r"val_bpb:enabled tokenizer_kind=sentencepiece tokenizer_path=.+",
        r"train_loader:dataset:tiny_sp320 train_shards:\d+",
        r"val_loader:shards pattern=.+ tokens:\d+",
        r"model_params:\d+ .*",
        r"world_size:1 grad_accum_steps:2",
        r"attention_mode:gqa num_heads:2 num_kv_heads:1",
        r"step:6/6 train_loss:\d+\.\d{4} train_time:\d+ms step_avg:\d+\.\d{2}ms",
        r"step:6/6 val_loss:\d+\.\d{4} val_bpb:\d+\.\d{4} train_time:\d+ms step_avg:\d+\.\d{2}ms",
        r"Code size: \d+ bytes",
        r"Total submission size zlib: \d+ bytes",
        r"final_int8_zlib_roundtrip_exact val_loss:\d+\.\d{8} val_bpb:\d+\.\d{8}",
    ]:
        assert any(re.fullmatch(pattern, line) for line in lines), pattern
    result = result_of(out)
    assert result["status"] == "finished" and result["steps"] == 6
    assert result["artifact_bytes"] == result["model_bytes"] + result["code_bytes"]
    assert result["model_bytes"] == (out / "artifact.bin").stat().st_size
    kinds = [json.loads(line)["kind"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("report") == 2 and kinds.count("validation") == 1


def test_the_same_settings_give_the_same_artifact_and_score(finished, tmp_path):
    settings, out, _ = finished
    done = run_trainer({**settings, "out_dir": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    first, second = result_of(out), result_of(tmp_path)
    assert first["sha256"] == second["sha256"] and first["val_bpb"] == second["val_bpb"]
    assert first["hash"] == second["hash"]


def test_finished_stages_are_not_repeated(finished, tmp_path):
    import shutil

    settings, out, _ = finished
    copy = tmp_path / "again"
    shutil.copytree(out, copy)
    record = json.loads((copy / "stage_pack.json").read_text())
    assert 0 < record["peak_memory_bytes"] <= result_of(out)["peak_memory_bytes"]
    (copy / "stage_pack.json").write_text(json.dumps(record | {"peak_memory_bytes": 10**15}))
    done = run_trainer({**settings, "out_dir": str(copy)})
    assert "resume:pack" in done.stdout and "step:1/6" not in done.stdout
    again, before = result_of(copy), result_of(out)
    assert again["peak_memory_bytes"] == 10**15  # of the whole trial, whichever process needed it
    for key in ("val_bpb", "artifact_bytes", "train_seconds", "steps"):
        assert again[key] == before[key], key
    # another quantiser setting: training is reused, packing is not
    done = run_trainer({**settings, "out_dir": str(copy), "quantize_min_numel": "2000"})
    assert "resume:train" in done.stdout
    assert result_of(copy)["artifact_bytes"] != before["artifact_bytes"]


def test_a_corrupt_artifact_is_noticed_and_packed_again(finished, tmp_path):
    import shutil

    settings, out, _ = finished
    copy = tmp_path / "corrupt"
    shutil.copytree(out, copy)
    data = bytearray((copy / "artifact.bin").read_bytes())
    data[-5] ^= 1
    (copy / "artifact.bin").write_bytes(data)
    done = run_trainer({**settings, "out_dir": str(copy)})
    assert done.returncode == 0 and "resume:train" in done.stdout
    assert result_of(copy)["sha256"] == result_of(out)["sha256"]


def test_warm_up_is_fully_undone(finished, tmp_path):
    settings, out, _ = finished
    done = run_trainer({**settings, "warmup_steps": "3", "out_dir": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert result_of(tmp_path)["sha256"] == result_of(out)["sha256"] or (
        result_of(tmp_path)["val_bpb"] == result_of(out)["val_bpb"]
    )


def test_two_ranks_take_the_same_steps_as_one(finished, tmp_path):
    settings, out, _ = finished
    done = run_trainer({**settings, "out_dir": str(tmp_path)}, ranks=2)
    assert done.returncode == 0, done.stderr

    def losses(folder: Path) -> list[float]:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [r["train_loss"] for r in rows if r["kind"] == "train"]

    assert losses(tmp_path) == pytest.approx(losses(out), rel=2e-5)
    assert result_of(tmp_path)["val_bpb"] == pytest.approx(result_of(out)["val_bpb"], rel=1e-4)
    assert result_of(tmp_path)["val_tokens"] == result_of(out)["val_tokens"]


def test_a_budget_in_seconds_ends_by_the_clock_and_anneals(tiny, tmp_path):
    done = run_trainer(
        {**tiny, "max_wallclock_seconds": "1.0", "iterations": "100000", "out_dir": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    assert "stopping_early: wallclock_cap" in done.stdout
    result = result_of(tmp_path)
    assert 0.5 < result["train_seconds"] < 1.2  # a busy machine may make one step of 3 ms last long
    assert result["true_seconds"] > result["train_seconds"]


def test_a_diverging_run_is_the_configurations_fault(tiny, tmp_path):
    settings = {
        **tiny,
        "matrix_lr": "1e9",
        "tied_embed_lr": "1e12",
        "iterations": "30",
        "out_dir": str(tmp_path),
    }
    done = run_trainer(settings)
    assert done.returncode == 3
    result = result_of(tmp_path)
    assert result["status"] == "failed" and "diverged" in result["reason"]


def test_settings_precedence(tiny, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps({"preset": "laptop", "matrix_lr": 0.01, "scalar_lr": 0.02, "xsa": {"last_n": 2}})
    )
    environ = {"SCALAR_LR": "0.03", "TIED_EMBED_LR": "0.07", "XSA_LAST_N": "3"}
    run = train_gpt.settings_from(
        [str(file), "--tied_embed_lr", "0.08"], environ, catalog.runtime(), has_gpu=False
    )
    c = run.config
    assert (c.matrix_lr, c.scalar_lr, c.tied_embed_lr) == (0.01, 0.03, 0.08)
    assert c.model_dim == read_preset("laptop")["model_dim"]
    assert run.techniques["xsa"].config.last_n == 3
    assert run.origins["xsa.last_n"] == "environment"


@pytest.mark.parametrize(
    ("environ", "on", "off"),
    [
        ({"XSA_LAST_N": "0"}, {}, ["xsa"]),
        ({"MUON_MOMENTUM": "0.99", "MUON_WD": "0"}, {"muon_details.weight_decay": 0.0}, []),
        ({"WARMDOWN_FRAC": "0.85", "MIN_LR": "0"}, {"warmdown.frac": 0.85}, []),
        ({"TTT_ENABLED": "1", "EVAL_STRIDE": "16"}, {"score_first_ttt.stride": 16}, ["sliding_window"]),
        ({"EVAL_STRIDE": "32"}, {"sliding_window.stride": 32}, []),
    ],
)
def test_the_fields_variables(environ: dict, on: dict, off: list):
    run = train_gpt.settings_from([], environ, catalog.runtime(), has_gpu=False)
    assert {name: run.values[name] for name in on} == on
    assert not any(run.values[name] for name in off)
    with pytest.raises(ValueError, match="is off"):
        train_gpt.settings_from([], {"TTT_EPOCHS": "2"}, catalog.runtime(), has_gpu=False)


# ---- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_layer", "3"], "Did you mean 'num_layers'?"),
        (["--xs"], "Did you mean 'xsa'?"),
        (["--xsa", "--xsa.last", "3"], "Did you mean 'last_n'?"),
        (["--xsa.last_n", "3"], "xsa is off"),
        (["--num_layers", "many"], "takes a int"),
        (["--num_heads", "3"], "even multiple"),
        (["--num_heads", "8", "--num_kv_heads", "3"], "Use one of 1, 2, 4, 8"),
        (["--train_batch_tokens", "1000"], "must be a multiple"),
        (["--matrix_lr", "-1"], "must lie in"),
        (["--preset", "naiv"], "Did you mean 'naive'?"),
        (["--preset"], "takes a value"),
        (["nowhere.json"], "No configuration file"),
        (["--gptq", "--gptq_lite"], "Only one technique may fill the slot"),
        (["--device", "cuda"], "A GPU was demanded"),
        (["--attention", "fa3", "--device", "cpu"], "was demanded, but this machine offers"),
        (["--data_path", "nowhere"], "nowhere"),
    ],
)
def test_bad_settings_give_one_clear_error(arguments: list[str], message: str, tmp_path, capsys):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert train_gpt.main([f"--out_dir={tmp_path / 'out'}", *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.strip().splitlines()) == 1, told


def test_bad_data_gives_one_clear_error(tiny, tmp_path, capsys):
    import shutil

    def attempt(change) -> str:
        folder = tmp_path / "data"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(Path(tiny["data_path"]).parent.parent, folder)
        change(folder / "datasets" / "tiny_sp320")
        settings = {
            **tiny,
            "data_path": str(folder / "datasets" / "tiny_sp320"),
            "tokenizer_path": str(folder / "tokenizers" / "tiny_320_bpe.model"),
            "out_dir": str(tmp_path / "out"),
        }
        assert train_gpt.main(tiny_arguments(settings)) == 2
        return capsys.readouterr().err

    def truncate(folder: Path):
        path = next(folder.glob("fineweb_train_*"))
        path.write_bytes(path.read_bytes()[:-100])

    def foreign(folder: Path):
        path = next(folder.glob("fineweb_val_*"))
        path.write_bytes(struct.pack("<256i", *([7] * 256)) + path.read_bytes()[1024:])

    def leak(folder: Path):
        path = next(folder.glob("fineweb_train_*"))
        path.write_bytes(next(folder.glob("fineweb_val_*")).read_bytes())
        (folder / "manifest.json").unlink()

    assert "error:" in attempt(truncate)
    assert "error:" in attempt(foreign)
    assert "validation" in attempt(leak)
    out = {"out_dir": str(tmp_path / "out")}
    assert train_gpt.main(tiny_arguments({**tiny, **out, "vocab_size": "1024"})) == 2
    assert "320" in capsys.readouterr().err
    long = {**tiny, **out, "train_seq_len": "65536", "train_batch_tokens": "131072"}
    assert train_gpt.main(tiny_arguments(long)) == 2
    assert "65,537" in capsys.readouterr().err


def test_an_unusable_folder_is_one_clear_error(tiny, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert train_gpt.main(tiny_arguments({**tiny, "out_dir": str(blocked / "run")})) == 2
    told = capsys.readouterr().err
    assert told.startswith("error:") and str(blocked) in told
