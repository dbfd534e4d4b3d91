"""The records' run commands as their READMEs print them, on two ranks of a CPU; only sizes are overridden."""

import json
from pathlib import Path

import pytest

from techniques import catalog
from tests.conftest import run_trainer
from tests.test_presets import small
from tests.test_published import COMMANDS as EVERY
from tests.test_published import settings, variables

PROTOCOLS = {"pr518": "pre_eval_ttt", "pr549": "score_first_ttt", "pr1263": "slot", "pr1855": "phased_ttt"}
COMMANDS = {preset: EVERY[preset] for preset in PROTOCOLS}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("preset", COMMANDS)
def test_a_records_command_runs(preset: str, tiny: dict[str, str], tmp_path: Path) -> None:
    """`VARIABLES torchrun --standalone --nproc_per_node=2 train_gpt.py`, the preset chosen by PRESET."""
    if PROTOCOLS[preset] not in catalog.metadata():
        pytest.skip(f"{PROTOCOLS[preset]} is not built yet")
    environ = {"PRESET": preset, **variables(COMMANDS[preset])}
    sizes = small(preset, tiny) | {"iterations": "3", "val_tokens": "1024", "out_dir": str(tmp_path)}
    if "VE_LAYERS" in environ:
        sizes["value_embedding.layers"] = "2,3"  # of four
    done = run_trainer(sizes, ranks=2, env=environ)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "finished" and result["world_size"] == 2 and result["steps"] == 3
    assert result["protocol"] == PROTOCOLS[preset]
    told = json.loads((tmp_path / "resolved.json").read_text())
    full = settings(preset, environ)
    meant = {k for k, origin in full.origins.items() if origin == "environment"} - set(sizes)
    assert meant and {k: told["values"][k] for k in meant} == {k: full.values[k] for k in meant}
