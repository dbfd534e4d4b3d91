"""`python -m search.trainers.foreign.adapter config.json --out_dir=DIR`: somebody else's trainer under ours.

It makes a working folder for the run (work_folder.py), starts the unmodified script there with its variables
of the environment, reads what it prints (log_reader.py), and writes metrics.jsonl, train.log and result.json
as train_gpt.py would (docs/contracts.md).

Exit status: 0 finished; 2 bad input; 3 the configuration failed (diverged, out of memory, an exception that
says its values are wrong, no score, too much output); 1 the script ended as it should not (a signal,
another exception): perhaps the machine's fault, and tried again. Killing is not done here:
search/trainers/guard.py, our parent, adopts and kills every descendant, also one in a session of its own.
"""

import json
import math
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from readers.log_reader import LogError, LogReader, Rules, plain
from search.trainers.foreign import edit_files
from search.trainers.foreign import work_folder as workfolder

CHUNK = 1 << 16
MAX_LINE = 1 << 14  # bytes of a line that are read; the rest of it is skipped
HEAD_BYTES = 1 << 20  # of the output that is kept on disk
TAIL_LINES, TAIL_CHUNK = 400, 2000  # and its last lines, in characters each
DRAIN_S = 0.5  # after the script's end: a child that holds its output open is not waited for
FINISHED, BAD_INPUT, CONFIG_FAILED, BROKEN = 0, 2, 3, 1
SIGNALS = {one.value: one.name for one in signal.Signals}
MEMORY = re.compile(  # an exception or the allocator says so; a line that only tells of it is none
    r"(?i)^(?:\[\w+\]:\s*)?[\w.]*(?:OutOfMemoryError|MemoryError|Error: .*out of memory|"
    r".*(?:can't|cannot) allocate memory)"
)
# an exception that complains about values; others may be the machine's (a lost GPU, NCCL, a missing file)
WRONG_VALUES = re.compile(
    r"^(?:\[\w+\]:\s*)?((?:ValueError|AssertionError|TypeError|ZeroDivisionError|KeyError|IndexError|"
    r"OverflowError|FloatingPointError|NotImplementedError)\b.*)"
)

USAGE = 2  # exit status of argparse, click and the like for words that they do not take
WRONG_USAGE = re.compile(r"(?:[\w./-]{1,200}: )?[Ee]rror: ")


@dataclass
class Output:
    """What the script printed: whole lines for the reader, a bounded copy for people."""

    log: BinaryIO
    on_line: Callable[[str], None]
    total: int = 0
    last: str = ""  # the last line that says something
    tail: deque[str] = field(default_factory=lambda: deque[str](maxlen=TAIL_LINES))
    _rest: bytes = b""
    _skipping: bool = False

    def feed(self, data: bytes) -> None:
        room = HEAD_BYTES - self.total
        if room > 0:
            self.log.write(data[:room])
            self.log.flush()
        self.total += len(data)
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not self._skipping:
                self._line(line)
            self._skipping = False
        if len(rest) > MAX_LINE:
            if not self._skipping:
                self._line(rest[:MAX_LINE])
            self._skipping, rest = True, b""
        self._rest = rest

    def _line(self, line: bytes) -> None:
        text = line[:MAX_LINE].decode("utf-8", "replace").rstrip().rpartition("\r")[2]
        if text.strip():
            self.last = text.strip()[:500]
            self.tail.append(text[:TAIL_CHUNK])
            self.on_line(text)

    def close(self) -> None:
        """The unfinished last line; the tail, where the head of the log did not reach it."""
        if self._rest and not self._skipping:
            self._line(self._rest)
            self._rest = b""
        if self.total > HEAD_BYTES:
            self.log.write(f"\n... of {self.total:,} bytes, the last lines:\n".encode())
            self.log.write("\n".join(self.tail).encode() + b"\n")
        self.log.flush()

    def last_match(self, pattern: re.Pattern[str]) -> str:
        """The last of the kept lines that matches; "" without one."""
        return next((line.strip()[:500] for line in reversed(self.tail) if pattern.search(line)), "")


class Run:
    def __init__(self, config: Mapping[str, Any], out: Path):
        self.trainer: dict[str, Any] = config["trainer"]
        self.environment: dict[str, str] = config["environment"]
        self.out, self.work = out, out / workfolder.NAME
        self.began = time.monotonic()
        self.reader = LogReader(Rules(**_tuples(self.trainer["rules"])))
        self.failure = ""

    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    def run(self) -> int:
        """To its end; the exit status that the head of this file lists."""
        workfolder.make(self.work, self.trainer)
        try:
            edit_files.edit(self.work, self.trainer)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return BAD_INPUT
        words = [word.replace("{work}", str(self.work)) for word in self.trainer["command"]]
        with (self.out / "train.log").open("wb") as log, (self.out / "metrics.jsonl").open("w") as metrics:

            def on_line(line: str) -> None:
                for report in self.reader.feed(line, self.elapsed_s()):
                    metrics.write(json.dumps(report) + "\n")
                    metrics.flush()

            output = Output(log, on_line)
            try:
                process = subprocess.Popen(
                    words,
                    cwd=self.work,
                    env=os.environ | self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            except OSError as error:
                print(f"error: cannot start {words[0]}: {error.strerror}", file=sys.stderr)
                return BAD_INPUT
            status = self._follow(process, output)
            output.close()
        return self._end(status, output)

    def _follow(self, process: subprocess.Popen[bytes], output: Output) -> int | None:
        """Reads until the script has ended (its status) or must not go on (None: we ended it)."""
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        heard, silent_s, flood = time.monotonic(), self.trainer["silent_seconds"], self.trainer["max_output"]
        ended: float | None = None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                data = b""
                if selector.select(0.1):
                    data = process.stdout.read(CHUNK) or b""
                    if not data:  # its end
                        return process.wait()
                    heard = time.monotonic()
                    output.feed(data)
                if ended is None and process.poll() is not None:
                    ended = time.monotonic()
                if ended is not None and (not data or time.monotonic() - ended > DRAIN_S):
                    return process.returncode
                if self.reader.failure:
                    self.failure = self.reader.failure
                elif output.total > flood:
                    self.failure = f"flood: it printed more than {flood:,} bytes"
                elif silent_s and time.monotonic() - heard > silent_s:
                    self.failure = f"silent: nothing printed for {silent_s:g} s"
                if self.failure:
                    process.kill()  # its children are the guard's
                    process.wait()
                    return None

    def _end(self, status: int | None, output: Output) -> int:
        self.failure = self.failure or self.reader.failure
        if status == 0 and not self.failure:
            try:
                self._write(self._result())
                return FINISHED
            except LogError as error:
                self.failure = str(error)
        if not self.failure:
            memory, wrong = output.last_match(MEMORY), output.last_match(WRONG_VALUES)
            if memory:
                self.failure = f"out of memory: {memory}"
            elif wrong and (status or 0) > 0:
                self.failure = f"crash: {wrong}"
            elif status == USAGE and WRONG_USAGE.match(output.last):
                self.failure = f"crash: {output.last}"
        if self.failure:
            self._write({"status": "failed", "reason": self.failure, "val_bpb": None} | self._figures())
            print(self.failure, file=sys.stderr)
            return CONFIG_FAILED
        killed = -(status or 0)
        how = f"signal {SIGNALS.get(killed, killed)}" if killed > 0 else f"exit status {status}"
        print(f"the script ended with {how}: {output.last or 'it printed nothing'}", file=sys.stderr)
        return BROKEN

    def _result(self) -> dict[str, Any]:
        """The result of a run that ended well. Raises LogError when its log does not say what counts."""
        label, bpb, loss = self.reader.value()
        if not math.isfinite(bpb):
            raise LogError(f"diverged: {label} says val_bpb {bpb}")
        count, told = self._bytes()
        end_s = self.elapsed_s()
        train_s, train_from = self.reader.train_seconds(end_s)
        eval_s, eval_from = self.reader.eval_seconds(end_s)
        return {
            "status": "finished",
            "reason": "",
            "val_bpb": bpb,
            "val_loss": loss if math.isfinite(loss) else None,
            "protocol": label,
            "labels": [plain(one) for one in (label, *self.reader.scores)],
            "seen": self.reader.seen(),
            "artifact_bytes": count,
            "bytes_from": told,
            "train_seconds": train_s,
            "eval_seconds": eval_s,
            "seconds_from": {"train": train_from, "eval": eval_from},
        } | self._figures()

    def _figures(self) -> dict[str, Any]:
        reader = self.reader
        loss = self.reader.train_loss
        return {
            "true_seconds": round(self.elapsed_s(), 3),
            "steps": reader.steps,
            "train_loss": loss if loss is not None and math.isfinite(loss) else None,
            "params": reader.params,
            "code_bytes": reader.code_bytes,
            "peak_memory_bytes": reader.peak_memory_bytes,
            "code_hash": self.trainer["code_hash"],
            "device": self.trainer["hardware"],
            "torch": None,
            "hash": self.trainer["hash"],
            "activity": {},
        }

    def _bytes(self) -> tuple[int, str]:
        """(bytes of the artifact, where from). Named files are weighed; the larger of the two counts."""
        printed, files = self.reader.artifact_bytes(), self.trainer["files"]
        if not files:
            if printed is None:
                raise LogError(
                    "no size: no line `Total submission size <codec>: <n> bytes` was printed. Name what "
                    "counts: files = [...] in [trainer]"
                )
            return printed, "log"
        weighed = workfolder.weigh(self.work, files)
        if isinstance(weighed, str):
            raise LogError(f"no size: no file {weighed!r} in the working folder after the run")
        if printed is None or printed == weighed:
            return weighed, "files"
        return max(printed, weighed), f"the larger of {printed:,} in the log and {weighed:,} in the files"

    def _write(self, result: Mapping[str, Any]) -> None:
        part = self.out / "result.json.part"
        part.write_text(json.dumps(dict(result)) + "\n", encoding="utf-8")
        part.replace(self.out / "result.json")


def _tuples(rules: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in rules.items()}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def main(argv: list[str]) -> int:
    path, out = Path(argv[0]), Path(argv[1].removeprefix("--out_dir="))
    run = Run(json.loads(path.read_text(encoding="utf-8")), out)
    try:
        return run.run()
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return BROKEN
    finally:
        workfolder.clear(run.work, out, run.trainer["keep"])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
