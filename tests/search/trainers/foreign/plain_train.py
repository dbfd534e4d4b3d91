"""Somebody else's trainer, for the tests: arguments in, lines of its own out, a loss in nats; no torch."""

import argparse
import json
import math
import time

SCALE = 1.0  # replaced in a run's own copy


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--optimizer", choices=["adam", "muon"], default="adam")
    parser.add_argument("--momentum", type=float, default=0.95)
    parser.add_argument("--max-iters", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--config", default="")
    args = parser.parse_args()
    if args.num_layers % 2:
        raise ValueError("num_layers must be even")
    extra = json.load(open(args.config))["extra"]["shift"] if args.config else 0.0
    end = 3.0 + abs(math.log(args.learning_rate / 0.05)) - 0.01 * args.num_layers + extra
    end = (end - 0.1 * (args.optimizer == "muon") - 0.05 * args.fused) * SCALE
    for step in range(args.max_iters + 1):
        if step % 5 == 0:
            print(f"iter {step:04d}: validation loss {end + 2 * math.exp(-step / 8):.4f}", flush=True)
        time.sleep(0.001)
    print(f"training took {args.max_iters * 0.25:.2f} s in all")


if __name__ == "__main__":
    main()
