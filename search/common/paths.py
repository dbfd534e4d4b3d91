"""Where things are: the project, and the folders of a study under its home."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the project
STUDIES = ROOT / "studies"
DEFAULT_STUDY = STUDIES / "laptop.toml"


def shown(path: Path) -> Path:
    """The path as people read it: from the project on, where it lies in there."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def from_here(path: Path) -> Path:
    """The path from the working folder on, where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@dataclass(frozen=True)
class Folders:
    """Of one study, under its home."""

    home: Path
    study: str

    @property
    def database(self) -> Path:
        return self.home / ".caddie"

    @property
    def runs(self) -> Path:
        return self.home / "runs" / self.study

    @property
    def artifacts(self) -> Path:
        return self.runs / "artifacts"

    def trial(self, number: int) -> Path:
        return self.runs / str(number)

    def forget_weights(self, number: int) -> None:
        """The float weights of a trial that ended: the packed artifact is what counts; disks are small."""
        (self.trial(number) / "weights.pt").unlink(missing_ok=True)
