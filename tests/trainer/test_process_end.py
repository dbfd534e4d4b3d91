"""How a process ends."""

import os
import subprocess
import sys

import pytest

CODE = """
import threading, time
from trainer.machine import end_process
print("told", end="")
threading.Thread(target=time.sleep, args=(60,)).start()
end_process({code})
"""


@pytest.mark.parametrize("rank", [{}, {"RANK": "1"}])
@pytest.mark.parametrize("code", [0, 2, 3])
def test_a_process_ends_at_once_with_its_status_and_all_that_it_said(code: int, rank: dict[str, str]) -> None:
    environ = {**{k: v for k, v in os.environ.items() if k != "RANK"}, **rank}
    command = [sys.executable, "-c", CODE.format(code=code)]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=50, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "told", "")
