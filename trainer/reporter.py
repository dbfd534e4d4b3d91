"""What a run says and where: people read stdout and train.log, machines metrics.jsonl and result.json.

The lines are spelt as the field's trainers spell them: foreign readers look for them.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from techniques.config import Config, Resolved
from trainer.world import write_atomically


class Log:
    """Rank 0's voice, and its files."""

    def __init__(self, out_dir: Path, rank: int):
        self.out_dir, self.loud = out_dir, rank == 0
        if self.loud:
            out_dir.mkdir(parents=True, exist_ok=True)
            self._text = open(out_dir / "train.log", "w", encoding="utf-8", buffering=1)
            self._metrics = open(out_dir / "metrics.jsonl", "w", encoding="utf-8", buffering=1)

    def __call__(self, line: str, *, screen: bool = True) -> None:
        if self.loud:
            print(line, file=self._text)
            if screen:
                print(line, flush=True)

    def metrics(self, **values: Any) -> None:
        if self.loud:
            print(json.dumps(values), file=self._metrics, flush=True)

    def write_json(self, name: str, value: Any) -> None:
        if self.loud:
            write_atomically(self.out_dir / name, json.dumps(value, indent=1, sort_keys=True).encode())


class Reporter:
    """The lines of one run, from its settings to its findings."""

    def __init__(self, log: Log, config: Config):
        self.log, self.config = log, config

    # -- before training -----------------------------------------------------------------------------------

    def code(self, texts: Iterable[str], device: torch.device) -> None:
        """Of the log alone: the code that runs, and on what."""
        for text in texts:
            self.log(text, screen=False)
        self.log("=" * 100, screen=False)
        self.log(f"Running Python {platform.python_version()}, PyTorch {torch.__version__}", screen=False)
        if device.type == "cuda" and self.log.loud:
            smi = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False)
            self.log(smi.stdout, screen=False)

    def settings(self, resolved: Resolved, data: Any, facts: Mapping[str, Any]) -> None:
        """`facts`: what World.machine_facts says of the machine."""
        c, log = self.config, self.log
        on = ", ".join(resolved.techniques) or "none"
        log(f"val_bpb:enabled tokenizer_kind=sentencepiece tokenizer_path={c.tokenizer_path}")
        log(f"train_loader:dataset:{Path(c.data_path).name} train_shards:{len(data.train_paths)}")
        log(f"val_loader:shards pattern={c.data_path}/fineweb_val_*.bin tokens:{data.num_scored_tokens}")
        log(f"techniques:{on} (chain order) attention:{facts['attention']} compute:{facts['compute_dtype']}")
        log(f"world_size:{facts['world_size']} grad_accum_steps:{c.micro_batches // facts['world_size']}")
        log(f"attention_mode:gqa num_heads:{c.num_heads} num_kv_heads:{c.num_kv_heads}")
        embed_lr = c.tied_embed_lr if c.tie_embeddings else c.embed_lr
        head_lr = 0.0 if c.tie_embeddings else c.head_lr
        log(
            f"tie_embeddings:{c.tie_embeddings} embed_lr:{embed_lr} head_lr:{head_lr} "
            f"matrix_lr:{c.matrix_lr} scalar_lr:{c.scalar_lr}"
        )
        log(
            f"train_batch_tokens:{c.train_batch_tokens} train_seq_len:{c.train_seq_len} "
            f"iterations:{c.iterations} warmup_steps:{c.warmup_steps} "
            f"max_wallclock_seconds:{c.max_wallclock_seconds:.3f}"
        )
        log(f"seed:{c.seed}")

    def parameter_counts(self, resolved: Resolved, by_role: Mapping[str, int]) -> None:
        predicted = sum(t.numel for t in resolved.shape().tensor_specs())
        predicted += sum(cost.params for cost in resolved.costs.values())
        count = sum(by_role.values())
        self.log(f"model_params:{count} predicted:{predicted} by_role:{json.dumps(by_role)}")

    # -- while training ------------------------------------------------------------------------------------

    def warm_up(self, step: int) -> None:
        if step in (1, self.config.warmup_steps):
            self.log(f"warmup_step:{step}/{self.config.warmup_steps}")

    def phase(self, phase: float, step: int) -> None:
        if phase:
            self.log(f"phase:{phase} step:{step}")

    def step(self, step: int, train_loss: float, elapsed_s: float) -> None:
        self.log(
            f"step:{step}/{self.config.iterations} train_loss:{train_loss:.4f} {step_times(step, elapsed_s)}"
        )
        self.log.metrics(kind="train", step=step, train_loss=train_loss, elapsed_s=elapsed_s)

    def validation(self, step: int, progress: float, score: Any, elapsed_s: float) -> None:
        self.log(
            f"step:{step}/{self.config.iterations} val_loss:{score.val_loss:.4f} "
            f"val_bpb:{score.val_bpb:.4f} {step_times(step, elapsed_s)}"
        )
        self.log.metrics(
            kind="validation", step=step, progress=progress, val_bpb=score.val_bpb, elapsed_s=elapsed_s
        )

    def report(self, scores: Mapping[str, float], **moment: Any) -> None:
        """Early scores: val_bpb, and val_bpb_average where weights are averaged."""
        self.log.metrics(kind="report", **moment, **scores)

    def stopped(self, step: int, elapsed_s: float) -> None:
        """The clock, not the last step, ended the training."""
        if step < self.config.iterations:
            self.log(
                f"stopping_early: wallclock_cap train_time:{1000 * elapsed_s:.0f}ms "
                f"step:{step}/{self.config.iterations}"
            )

    # -- behind it -----------------------------------------------------------------------------------------

    def reused(self, stage: str, key: str, what: str) -> None:
        self.log(f"resume:{stage} key:{key} ({what} not repeated)")

    def sizes(self, codec: str, model_bytes: int, code_bytes: int) -> None:
        self.log(f"Serialized model {codec}: {model_bytes} bytes")
        self.log(f"Code size: {code_bytes} bytes")
        self.log(f"Total submission size {codec}: {model_bytes + code_bytes} bytes")

    def score(self, codec: str, protocol: str, score: Any, timed_s: float) -> None:
        name = f"final_int8_{codec}_roundtrip"
        self.log(
            f"{name} val_loss:{score.val_loss:.4f} val_bpb:{score.val_bpb:.4f} "
            f"eval_time:{1000 * timed_s:.0f}ms"
        )
        self.log(f"{name}_exact val_loss:{score.val_loss:.8f} val_bpb:{score.val_bpb:.8f}")
        self.log(f"protocol:{protocol} tokens:{score.tokens} bytes:{score.bytes}")

    def outcome(self, result: Mapping[str, Any]) -> None:
        """The last lines, and result.json."""
        self.log(f"peak memory allocated: {result['peak_memory_bytes'] // 2**20} MiB")
        for name, facts in result["activity"].items():
            self.log(f"activity:{name} {facts['verdict']}")
        for finding in result["findings"]:
            self.log(f"finding:{finding}")
        self.log.write_json("result.json", result)


def step_times(step: int, elapsed_s: float) -> str:
    """Timed milliseconds so far, and a step."""
    ms = 1000 * elapsed_s
    return f"train_time:{ms:.0f}ms step_avg:{ms / max(1, step):.2f}ms"
