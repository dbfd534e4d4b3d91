"""Workers of this machine: their logs."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from search.common.paths import Folders
from search.engines.local import log_of


def test_two_sessions_of_one_home_write_two_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    session = cast("Any", SimpleNamespace(folders=Folders(tmp_path, "study")))
    mine = {log_of(session, index) for index in (0, 1)}
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert len(mine | {log_of(session, index) for index in (0, 1)}) == 4
    assert {path.parent for path in mine} == {tmp_path / "runs" / "study" / "workers"}
