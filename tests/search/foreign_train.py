"""Somebody else's trainer, for the tests: environment variables in, the standard log lines out, no torch.

It knows nothing of this repository. FAULT makes it misbehave; the rest is a small landscape of BPB.
"""

import math
import os
import signal
import subprocess
import sys
import time


class Hyperparameters:
    seed = int(os.environ.get("SEED", 1337))
    run_id = os.environ.get("RUN_ID", "run")
    iterations = int(os.environ.get("ITERATIONS", 40))
    val_loss_every = int(os.environ.get("VAL_LOSS_EVERY", 5))
    max_wallclock_seconds = float(os.environ.get("MAX_WALLCLOCK_SECONDS", 600.0))
    warmdown_iters = int(os.environ.get("WARMDOWN_ITERS", 10))
    num_layers = int(os.environ.get("NUM_LAYERS", 9))
    matrix_lr = float(os.environ.get("MATRIX_LR", 0.04))
    ttt_enabled = bool(int(os.environ.get("TTT_ENABLED", "0")))
    ttt_lr = float(os.environ.get("TTT_LR", 0.002))
    step_ms = float(os.environ.get("STEP_MS", 2.0))
    fault = os.environ.get("FAULT", "none")


def bpb_at(args: Hyperparameters, progress: float) -> float:
    end = 1.2 + abs(math.log(args.matrix_lr / 0.05)) * 0.1 - 0.01 * args.num_layers
    return end + 2.0 * math.exp(-4.0 * progress)


def misbehave(fault: str) -> None:
    """What happens before the first step."""
    if fault == "crash":
        raise RuntimeError("NCCL says nothing good")
    if fault == "bad_value":
        assert 8 % 3 == 0, "num_heads must be a multiple of num_kv_heads"
    if fault == "oom":
        raise MemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    if fault == "usage":
        print("usage: train_gpt.py [--x X]\ntrain_gpt.py: error: argument --x: expected one argument")
        sys.exit(2)
    if fault == "nothing":
        sys.exit(0)
    if fault == "garbage":
        sys.stdout.buffer.write(os.urandom(200_000) + b"\nval_bpb:\nfinal val_bpb:abc\nstep:x/y val_bpb:1\n")
        sys.exit(0)
    if fault == "flood":
        while True:
            sys.stdout.write("val_bpb of nothing, again and again " * 4000)
    if fault == "silent":
        time.sleep(600)
    if fault == "forks":  # a child in our group, one in a session of its own; both hold our output
        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        pids = [subprocess.Popen(sleep, start_new_session=new).pid for new in (False, True)]
        with open(os.environ["PIDS"], "a") as file:
            file.write("".join(f"{pid}\n" for pid in pids))
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    args = Hyperparameters()
    os.makedirs("logs", exist_ok=True)
    assert not os.path.exists("final_model.ptz"), "a working folder that another run uses"
    assert os.path.exists("data/corpus.txt"), "the data is where it always was, relative to the script"
    log = open(f"logs/{args.run_id}.txt", "w")

    def log0(text: str) -> None:
        print(text, flush=True)
        print(text, file=log)

    print(open(__file__).read(), file=log)
    log0("=" * 100)
    misbehave(args.fault)
    log0(f"model_params:{args.num_layers * 1000}")
    log0(f"iterations:{args.iterations} max_wallclock_seconds:{args.max_wallclock_seconds:.3f}")
    log0(f"seed:{args.seed}")
    n = args.iterations
    for step in range(n + 1):
        ms = step * args.step_ms
        if step % args.val_loss_every == 0 or step == n:
            bpb = bpb_at(args, step / n)
            log0(f"step:{step}/{n} val_loss:{bpb * 1.7:.4f} val_bpb:{bpb:.4f} train_time:{ms:.0f}ms")
        if step < n:
            loss = float("nan") if args.fault == "nan" and step == 7 else bpb_at(args, step / n) * 1.7
            time.sleep(args.step_ms / 1000)
            log0(f"step:{step + 1}/{n} train_loss:{loss:.4f} train_time:{ms:.0f}ms step_avg:2.00ms")
    size = 1000 * args.num_layers
    with open("final_model.ptz", "wb") as file:
        file.write(b"\0" * size)
    code = os.path.getsize(__file__)
    log0(f"Code size: {code} bytes")
    log0(f"Total submission size: {4 * size + code} bytes")
    log0(f"Total submission size int8+zlib: {size + code} bytes")
    if args.fault == "no_score":
        return
    bpb = bpb_at(args, 1.0) + 0.01
    log0(f"DIAGNOSTIC post_ema val_loss:{bpb:.4f} val_bpb:{bpb - 0.2:.4f} eval_time:900000ms")
    log0(f"final_int8_zlib_roundtrip val_loss:{bpb * 1.7:.4f} val_bpb:{bpb:.4f} eval_time:1500ms")
    log0(f"final_int8_zlib_roundtrip_exact val_loss:{bpb * 1.7:.8f} val_bpb:{bpb:.8f}")
    if args.ttt_enabled:
        bpb -= 0.02 + 0.01 * math.exp(-abs(math.log(args.ttt_lr / 0.003)))
        log0(f"legal_ttt val_loss:{bpb * 1.7:.4f} val_bpb:{bpb:.4f} eval_time:2500ms")
        log0(f"legal_ttt_exact val_loss:{bpb * 1.7:.8f} val_bpb:{bpb:.8f}")


if __name__ == "__main__":
    main()
