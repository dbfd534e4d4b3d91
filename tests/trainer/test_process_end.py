"""How a process ends."""

import os
import subprocess
import sys

import pytest

from trainer.machine import end_process

CODE = """
import threading, time
from trainer.machine import end_process
print("told", end="")
threading.Thread(target=time.sleep, args=(60,)).start()
end_process({code})
"""


@pytest.mark.parametrize("code", [0, 2, 3])
def test_a_rank_ends_at_once_with_its_status_and_all_that_it_said(code: int) -> None:
    environ = {**os.environ, "RANK": "1"}
    command = [sys.executable, "-c", CODE.format(code=code)]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=50, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "told", "")


@pytest.mark.parametrize("code", [0, 2, 3])
def test_a_process_alone_ends_as_python_does(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as ended:
        end_process(code)
    assert ended.value.code == code
