"""What ends a trial, a worker or a session early; and redact: no text of ours holds a password."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

OPEN = ("host", "port", "dbname", "user", "sslmode")  # what may be told of a URL's query
SHORT = 3  # a secret of fewer characters protects nothing, and would garble every text
_secrets: set[str] = set()


class InfrastructureError(RuntimeError):
    """Raised by an objective: not the configuration's fault. It is tried again, at most MAX_RETRY times."""


class Interrupted(RuntimeError):
    """Raised by an objective that was told to stop: its configuration waits for the next session."""


class TooManyFailures(RuntimeError):
    """MAX_FAILURES trials in a row failed in this worker."""


def conceal(url: str) -> None:
    """From now on `redact` takes out the secrets of this URL: its password, and what its query gives, as they
    are written and as they are meant."""
    rest, _, query = url.partition("://")[2].partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")]
    values = [value for name, _, value in pairs if name not in OPEN and not re.fullmatch(r"\d{1,5}", value)]
    for value in (rest.rpartition("@")[0].partition(":")[2], *values):
        _secrets.update(v for v in (value, unquote_plus(value), value.replace(" ", "%20")) if len(v) >= SHORT)


def redact(text: object) -> str:
    """The text with every secret of a concealed URL, and whatever looks like one, replaced by ***."""
    clean = str(text)
    for secret in sorted(_secrets, key=len, reverse=True):
        clean = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", clean)
    clean = re.sub(r"(\w[\w+.-]*://[^\s:/@]*):(?!\*\*\*@)[^\n]*@", r"\1:***@", clean)
    clean = re.sub(
        r"([?&][\w.-]*(?:pass|pwd|secret|token|key)[\w.-]*=)(?!\*\*\*)[^&\n'\"]+", r"\1***", clean, flags=re.I
    )
    return re.sub(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^&\s'\"]+)", r"\1***", clean, flags=re.IGNORECASE)
