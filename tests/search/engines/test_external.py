"""A study on a PostgreSQL reached over TCP by its URL, as several machines would reach it."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy

from tests.search.db_helpers import held_server
from tests.search.fake_studies import caddie, search, write_study

pytestmark = pytest.mark.slow


@contextmanager
def over_tcp(url: str, address: str = "127.0.0.1") -> Iterator[str]:
    """The embedded server's URL as postgresql://…@ADDRESS:PORT: a relay stands before its socket."""
    parsed = sqlalchemy.make_url(url)
    path = f"{parsed.query['host']}/.s.PGSQL.{parsed.query.get('port', 5432)}"

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            sink.close()

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as server:
                server.connect(path)
                back = threading.Thread(target=pump, args=(server, self.request), daemon=True)
                back.start()
                pump(self.request, server)
                back.join()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server((address, 0), Relay) as relay:
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        made = sqlalchemy.URL.create(
            "postgresql",
            parsed.username,
            parsed.password,
            address,
            relay.server_address[1],
            parsed.database,
        )
        yield made.render_as_string(hide_password=False)
        relay.shutdown()


def test_a_study_on_an_external_server(tmp_path: Path) -> None:
    study = write_study(tmp_path, "external")
    with held_server() as (_, url), over_tcp(url) as external:
        ran = caddie(*search(study, tmp_path, 3, 2), CADDIE_STORAGE=external)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "3 of 3 trials done" in ran.stdout
        password = sqlalchemy.make_url(external).password
        assert password and password not in ran.stdout + ran.stderr
        assert not (tmp_path / ".caddie").exists()  # no private database was started
        again = caddie("status", f"--study={study}", f"--home={tmp_path}", CADDIE_STORAGE=external)
        assert "3 trials done" in again.stdout, again.stdout + again.stderr
