"""What the command line was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Common:
    """Options that every command takes, before or behind its name."""

    study: Path | None
    storage: str | None
    home: Path | None
    cache: tuple[str, ...] = ()  # the workers' options of the stage cache; (): none

    def behind(self, study: Path | None, storage: str | None, home: Path | None) -> Common:
        """These, where the command itself was not given others."""
        return Common(study or self.study, storage or self.storage, home or self.home)


def home_of(common: Common) -> Path:
    from search.common.paths import ROOT

    return (common.home or ROOT).absolute()
