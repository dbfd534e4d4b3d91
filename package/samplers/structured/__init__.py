"""StructuredSampler as OptunaHub loads it: from the project around this folder, or from what lies in it.

`python -m package.standalone --to FOLDER` makes a folder that holds all it needs, for a registry.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

SAMPLER = "search/samplers/structured/sampler.py"
HERE = Path(__file__).resolve().parent
ROOT = next(folder for folder in (HERE, *HERE.parents) if (folder / SAMPLER).is_file())

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
_there = importlib.util.find_spec("search")
if _there is None or str(ROOT / "search") not in [
    str(Path(p).resolve()) for p in _there.submodule_search_locations or ()
]:
    raise ImportError(
        f"StructuredSampler needs the module name `search` for {ROOT / 'search'}, but "
        f"{_there.origin if _there else 'another'} has it. Rename that one, or start Python elsewhere."
    )
_ours = importlib.import_module("search.samplers.structured.sampler")
StructuredSampler = _ours.StructuredSampler
Prior = _ours.Prior

__all__ = ["Prior", "StructuredSampler"]
