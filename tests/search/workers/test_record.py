"""Notes of trials are those of the dashboard, and no worker imports it."""

from __future__ import annotations

import subprocess
import sys

import optuna
import optuna_dashboard  # pyright: ignore[reportMissingTypeStubs]
import pytest

from search.workers.record import NOTE_PART, save_note
from tests.conftest import ROOT


@pytest.mark.parametrize("length", [0, 5, NOTE_PART, NOTE_PART + 1, 5000])
def test_a_note_is_read_and_stored_as_the_dashboards_own(length: int) -> None:
    text = "**bold** | é\n" * 500
    stored: list[dict[str, object]] = []
    for save in (save_note, optuna_dashboard.save_note):
        study = optuna.create_study()
        other = study.ask()
        trial = study.ask()
        save(other, "another one's")
        save(trial, text[:length])
        assert optuna_dashboard.get_note(trial) == text[:length]
        stored.append(study._storage.get_study_system_attrs(study._study_id))
    assert stored[0] == stored[1]


def test_a_worker_starts_without_the_dashboard_and_what_it_brings() -> None:
    """They took half of its start-up time."""
    code = "import sys, search.workers.worker; print(*{'optuna_dashboard', 'sklearn'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""
