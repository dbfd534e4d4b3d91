"""The conformance suite: what every technique must hold, checked on tiny runs: `suite.run(cls)` -> Report."""
