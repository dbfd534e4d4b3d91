"""Workers of this machine: their logs."""

from __future__ import annotations

from pathlib import Path

from search.engines.local import worker_log


def test_two_sessions_of_one_home_write_two_logs(tmp_path: Path):
    with worker_log(tmp_path / "workers", 0) as mine:
        mine.write(b"mine\n")
        with worker_log(tmp_path / "workers", 0) as theirs, worker_log(tmp_path / "workers", 1) as other:
            theirs.write(b"theirs\n")
            names = [Path(log.name).name for log in (mine, theirs, other)]
            assert names == ["0.log", "0.1.log", "1.log"]
    assert (tmp_path / "workers" / "0.log").read_bytes() == b"mine\n"
    with worker_log(tmp_path / "workers", 0) as again:  # both are over
        assert Path(again.name).name == "0.log" and (tmp_path / "workers" / "0.log").read_bytes() == b""
