"""The configuration of a stored trial, for a bundle."""

from bundle.one_file import OF_A_PLACE
from search.common import attributes
from search.session.session import Session
from techniques import catalog
from techniques.config import Resolved, read_preset, resolve


def of_trial(session: Session, number: int) -> Resolved:
    """The configuration of a stored trial. ValueError for one that there is not, or that never began."""
    if reason := session.trainer.no_bundle(number):
        raise ValueError(reason)
    trials = session.optuna_study.get_trials(deepcopy=False)
    found = session.whole([t for t in trials if t.number == number])
    if not found or attributes.CONFIG not in found[0].user_attrs:
        raise ValueError(f"{session.study.name} has no trial {number} with a configuration. See `status`.")
    layer = {k: v for k, v in found[0].user_attrs[attributes.CONFIG].items() if k not in OF_A_PLACE}
    preset = str(layer.pop("preset", ""))
    return resolve({"preset": read_preset(preset) if preset else {}, "file": layer}, catalog.metadata())
