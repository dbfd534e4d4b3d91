"""resolve_url(option, ...) -> the URL of a study's database; and how psycopg2 is to reach it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import exc

from search.storage.server import StorageError, url_of
from search.storage.timing import Timing

ENVIRONMENT = "CADDIE_STORAGE"
DRIVER = "postgresql+psycopg2"
SUPPORTED = "postgresql://user:password@host:5432/database"


def normalise_url(url: str) -> str:
    """The URL for SQLAlchemy and Optuna: psycopg2 named, braces percent-encoded. Raises StorageError."""
    url = url.strip()
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgres", "postgresql", DRIVER):
        shown = f"{scheme}://" if separator else "no URL" if not url else "a name without ://"
        raise StorageError(
            f"The storage must be a PostgreSQL URL such as {SUPPORTED} (postgres:// and {DRIVER}:// work "
            f"too), but got {shown}. Leave --storage out for the built-in PostgreSQL."
        )
    plain = f"{DRIVER}://{rest}".replace("{", "%7B").replace("}", "%7D")
    try:
        sqlalchemy.make_url(plain)
    except (exc.ArgumentError, ValueError):
        raise StorageError(
            f"The storage must be a URL of the form {SUPPORTED}, but this one cannot be read. Percent-encode "
            "odd characters of the password (@ is %40, / is %2F, : is %3A), and check the port."
        ) from None
    return plain


def resolve_url(option: str | None, *, home: Path, environ: Mapping[str, str]) -> str:
    """The URL to use: --storage, else CADDIE_STORAGE, else the private server under `home` (claimed)."""
    given = option or environ.get(ENVIRONMENT)
    return normalise_url(given) if given else url_of(home)


def connect_arguments(url: str, *, link_s: int = Timing.link_s) -> dict[str, Any]:
    """psycopg2's arguments: over TCP a dead link is noticed within about `link_s`, twice that when idle."""
    parts = sqlalchemy.make_url(url)
    arguments: dict[str, Any] = {"connect_timeout": 10, "application_name": "caddie"}
    if parts.host:
        arguments |= {"keepalives_idle": link_s, "keepalives_interval": max(1, link_s // 4)}
        arguments |= {"keepalives_count": 3, "tcp_user_timeout": 1000 * link_s}
    return arguments
