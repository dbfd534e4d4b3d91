"""What ends a trial, a worker or a session early; and redact: no text of ours holds a password."""

from __future__ import annotations

import re


class InfrastructureError(RuntimeError):
    """Raised by an objective: not the configuration's fault. It is tried again, at most MAX_RETRY times."""


class Interrupted(RuntimeError):
    """Raised by an objective that was told to stop: its configuration waits for the next session."""


class TooManyFailures(RuntimeError):
    """MAX_FAILURES trials in a row failed in this worker."""


def redact(text: object) -> str:
    """The text with every password in URLs and connection strings replaced by ***."""
    clean = re.sub(r"(\w[\w+.-]*://[^\s:/@]*):\S*@", r"\1:***@", str(text))
    return re.sub(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^&\s'\"]+)", r"\1***", clean, flags=re.IGNORECASE)
