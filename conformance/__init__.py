"""The conformance suite: what every technique must hold, checked on tiny runs. `run(cls)` -> Report."""

from conformance.suite import Report, run

__all__ = ["Report", "run"]
