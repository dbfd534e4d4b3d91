"""The store of finished stages: whole or not there, under its limit, and never the end of a trial."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from search.stage_cache.remote import Remote, open_remote
from search.stage_cache.reuse import FILES, REPORTS
from search.stage_cache.store import KNOWN_FILES, MANIFEST, Limits, Store
from tests.conftest import ROOT

ROOMY = Limits(10**9, keep_free_bytes=0)


def files(folder: Path, *contents: bytes) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("stage_average.json", "weights.pt", "reports.jsonl")]
    for path, content in zip(paths, contents, strict=False):
        path.write_bytes(content)
    return paths[: len(contents)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache", ROOMY)


def stored(store: Store, tmp_path: Path, name: str = "average-a") -> list[Path]:
    paths = files(tmp_path / "trial", b'{"key": "k"}', os.urandom(5000), b"")
    assert store.put(name, paths, {"key": "k"})
    return paths


def test_what_is_stored_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    paths = stored(store, tmp_path)
    (target := tmp_path / "other").mkdir()
    assert store.fetch("average-a", target) == {"key": "k"}
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {p.name: p.read_bytes() for p in paths}
    assert store.fetch("average-b", target) is None and store.facts("average-a") == {"key": "k"}
    assert not store.put("average-a", paths, {})  # the first one stays
    assert store.notes == [] and not any(store.tmp.iterdir())


def flip(entry: Path) -> None:
    data = bytearray((entry / "weights.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (entry / "weights.pt").write_bytes(data)


DAMAGES = {
    "a flipped bit": flip,
    "a cut file": lambda entry: os.truncate(entry / "weights.pt", 100),
    "a missing file": lambda entry: (entry / "weights.pt").unlink(),
    "an empty manifest": lambda entry: (entry / MANIFEST).write_bytes(b""),
    "a manifest of another form": lambda entry: (entry / MANIFEST).write_text("[1]"),
    "no manifest": lambda entry: (entry / MANIFEST).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_a_miss_and_is_built_anew(store: Store, tmp_path: Path, damage: str) -> None:
    paths = stored(store, tmp_path)
    DAMAGES[damage](store.entries / "average-a")
    (target := tmp_path / "other").mkdir()
    assert store.fetch("average-a", target) is None
    assert list(target.iterdir()) == []  # nothing half or wrong stays in a trial's folder
    assert len(store.notes) == (damage != "no manifest")
    assert store.put("average-a", paths, {"key": "k"})
    assert store.fetch("average-a", target) == {"key": "k"}


def relink(path: Path, to: Path) -> None:
    path.unlink()
    path.symlink_to(to)


def retold(entry: Path, name: str, **facts: object) -> None:
    """The manifest with another file in it, or with other facts of one."""
    told = json.loads((entry / MANIFEST).read_text())
    told["files"][name] = {**told["files"]["weights.pt"], **facts}
    (entry / MANIFEST).write_text(json.dumps(told))


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def moved(entry: Path, outside: Path) -> None:
    entry.rename(outside / "entry")
    entry.symlink_to(outside / "entry")


FORGERIES: dict[str, Callable[[Path, Path], object]] = {
    "an absolute name": lambda entry, out: retold(entry, str(out / "victim")),
    "a name above": lambda entry, out: retold(entry, "../../../out/victim"),
    "a name within": lambda entry, out: retold(entry, "./weights.pt"),
    "a file that no stage leaves": lambda entry, out: retold(entry, "config.json"),
    "its own name": lambda entry, out: retold(entry, MANIFEST),
    "an empty name": lambda entry, out: retold(entry, ""),
    "no size": lambda entry, out: retold(entry, "weights.pt", bytes=None),
    "a size below zero": lambda entry, out: retold(entry, "weights.pt", bytes=-1),
    "a size that is a truth": lambda entry, out: retold(entry, "weights.pt", bytes=True),
    "another size": lambda entry, out: retold(entry, "weights.pt", bytes=4999),
    "a huge record": lambda entry, out: retold(entry, "stage_average.json", bytes=10**8),
    "no hash": lambda entry, out: retold(entry, "weights.pt", sha256=[1]),
    "a huge manifest": lambda entry, out: (entry / MANIFEST).write_bytes(b" " * 65_000 + b"{}"),
    "a deep manifest": lambda entry, out: (entry / MANIFEST).write_bytes(b"[" * 30_000),
    "a list of files": lambda entry, out: (entry / MANIFEST).write_text('{"files": [], "facts": {}}'),
    "a linked file": lambda entry, out: relink(entry / "weights.pt", out / "victim"),
    "a linked manifest": lambda entry, out: relink(entry / MANIFEST, out / "victim"),
    "a linked entry": moved,
    "a pipe": lambda entry, out: piped(entry / "weights.pt"),
    "a pipe for a manifest": lambda entry, out: piped(entry / MANIFEST),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_entry_writes_and_reads_nothing_outside(store: Store, tmp_path: Path, forgery: str) -> None:
    paths = stored(store, tmp_path)
    (out := tmp_path / "out").mkdir()
    (victim := out / "victim").write_bytes(paths[1].read_bytes())
    FORGERIES[forgery](store.entries / "average-a", out)
    (target := tmp_path / "other").mkdir()
    assert store.fetch("average-a", target) is None and not any(target.iterdir())
    assert victim.read_bytes() == paths[1].read_bytes() and not store.has("average-a")
    assert len(store.notes) == 1 and "dropped" in store.notes[0]
    assert store.put("average-a", paths, {"key": "k"}) and store.fetch("average-a", target) is not None


def test_a_link_in_the_trial_s_folder_is_no_way_out(store: Store, tmp_path: Path) -> None:
    stored(store, tmp_path)
    (victim := tmp_path / "victim").write_text("mine")
    (target := tmp_path / "other").mkdir()
    (target / "weights.pt").symlink_to(victim)
    assert store.fetch("average-a", target) is not None and victim.read_text() == "mine"
    shutil.rmtree(store.tmp)
    store.tmp.symlink_to(tmp_path)
    with pytest.raises(ValueError, match="A stage cache is no link"):
        Store(store.root, ROOMY)


def test_a_target_that_cannot_be_written_drops_no_entry(store: Store, tmp_path: Path) -> None:
    stored(store, tmp_path)
    assert store.fetch("average-a", tmp_path / "not" / "there") == {"key": "k"}
    (tmp_path / "file").touch()
    assert store.fetch("average-a", tmp_path / "file") is None and store.has("average-a")
    small = Store(store.root, Limits(5_000, keep_free_bytes=0))  # another machine's limit is larger
    assert small.fetch("average-a", tmp_path / "o") is None and store.has("average-a")
    assert "larger than the whole cache" in small.notes[0]


def size_of(store: Store) -> int:
    return sum(path.stat().st_size for path in store.entries.rglob("*") if path.is_file())


def test_the_least_recently_used_go_first_and_never_one_in_use(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache", Limits(20_000, keep_free_bytes=0))
    for k, name in enumerate(("a", "b", "c")):
        assert store.put(name, files(tmp_path / name, b"{}", os.urandom(5000)), {})
        os.utime(store.entries / name / MANIFEST, (1000 + k, 1000 + k))
    (target := tmp_path / "t").mkdir()
    assert store.fetch("a", target) is not None  # now the youngest
    with store.reading("b"):  # the oldest, held
        assert store.put("d", files(tmp_path / "d", b"{}", os.urandom(5000)), {})
        assert {p.name for p in store.entries.iterdir()} == {"a", "b", "d"}
    assert size_of(store) <= 20_000
    assert store.put("e", files(tmp_path / "e", b"{}", os.urandom(12_000)), {})
    assert {p.name for p in store.entries.iterdir()} == {"d", "e"} and size_of(store) <= 20_000
    assert not store.put("f", files(tmp_path / "f", os.urandom(30_000)), {})
    assert "larger than the whole cache" in store.notes[0] and store.has("d")


WRITER = """
import sys, time
from pathlib import Path
from search.stage_cache.store import Limits, Store
store = Store(Path(sys.argv[1]), Limits(10**9, keep_free_bytes=0))
paths = sorted(Path(sys.argv[2]).iterdir())
while time.time() < float(sys.argv[3]):
    pass
print(sum(store.put(f"average-{k}", paths, {}) for k in range(40)))
"""


def test_two_writers_at_once_leave_whole_entries(store: Store, tmp_path: Path) -> None:
    stored(store, tmp_path, "other")
    words = [sys.executable, "-c", WRITER, str(store.root), str(tmp_path / "trial"), str(time.time() + 4)]
    both = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = [int(one.communicate(timeout=120)[0]) for one in both]
    assert sum(counts) == 40  # each entry has one writer
    for k in range(40):
        target = tmp_path / f"t{k}"
        target.mkdir()
        assert store.fetch(f"average-{k}", target) is not None
    assert store.notes == [] and not any(store.tmp.iterdir())


SLOW = """
import shutil, sys, time
from pathlib import Path
import search.stage_cache.store as cache
store = cache.Store(Path(sys.argv[1]), cache.Limits(10**9, keep_free_bytes=0))
copy = shutil.copyfile
def slow(a, b):
    copy(a, b); print("copied", flush=True); time.sleep(60)
cache.shutil.copyfile = slow
store.put("average-x", sorted(Path(sys.argv[2]).iterdir()), {})
"""


def test_kill_9_in_the_middle_of_a_store_leaves_nothing(store: Store, tmp_path: Path) -> None:
    paths = files(tmp_path / "trial", b"{}", os.urandom(5000))
    words = [sys.executable, "-c", SLOW, str(store.root), str(tmp_path / "trial")]
    writer = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "copied\n"
    assert any(store.tmp.iterdir())
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    after = Store(store.root, ROOMY)  # the next worker clears up
    assert not after.has("average-x") and not any(after.tmp.iterdir())
    assert after.put("average-x", paths, {})  # and the dead one's lock is gone


def test_a_full_disk_is_one_note(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs root")
    try:
        store = Store(place / "cache", ROOMY)
        paths = files(tmp_path / "trial", b"{}", os.urandom(700_000))
        assert store.put("a", paths, {})
        (place / "filler").write_bytes(os.urandom(200_000))
        held = store.reading("a")
        with held:  # nothing to evict: no room at all
            assert not store.put("b", paths, {}) and not store.put("c", paths, {})
        assert len(store.notes) == 1 and not any(store.tmp.iterdir())
        assert store.put("b", paths, {}) and not store.has("a")  # its place was free to take
        loose = Store(place / "cache", Limits(10**9, keep_free_bytes=-(10**9)))  # the disk itself says no
        assert not loose.put("d", paths, {}) and "No space left" in loose.notes[0]
        assert loose.has("b") and not any(loose.tmp.iterdir())
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_machines_share_through_an_artifact_store(tmp_path: Path) -> None:
    here, there = (Store(tmp_path / name, ROOMY) for name in ("here", "there"))
    shared = str(tmp_path / "shared")
    mine, theirs = open_remote(shared, here), open_remote(shared, there)
    paths = stored(here, tmp_path)
    assert mine.push("average-a") and not mine.push("average-none")
    assert theirs.fetch("average-a") and not theirs.fetch("average-none")
    (target := tmp_path / "t").mkdir()
    assert there.fetch("average-a", target) == {"key": "k"}
    assert (target / "weights.pt").read_bytes() == paths[1].read_bytes()
    assert here.notes == there.notes == []


@pytest.mark.parametrize("damage", ["cut", "changed", "foreign"])
def test_half_an_object_is_a_miss(tmp_path: Path, damage: str) -> None:
    here, there = (Store(tmp_path / name, ROOMY) for name in ("here", "there"))
    stored(here, tmp_path)
    shared = tmp_path / "shared"
    assert open_remote(str(shared), here).push("average-a")
    path = shared / "average-a.tar"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "changed":
        data[data.index(b"weights.pt") + 512 + 50] ^= 1
    else:
        data = data.replace(b"weights.pt", b"../evil.pt", 1)
    path.write_bytes(data)
    assert not open_remote(str(shared), there).fetch("average-a")
    assert not there.has("average-a") and len(there.notes) == 1 and not (tmp_path / "evil.pt").exists()


def member(name: str, data: bytes = b"", **facts: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in {"size": len(data), **facts}.items():
        setattr(info, key, value)
    return info, data


PACKED = {
    "an absolute name": [member("/tmp/weights.pt", b"x")],
    "a link": [member("weights.pt", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
    "a folder": [member("weights.pt", type=tarfile.DIRTYPE)],
    "a device": [member("weights.pt", type=tarfile.CHRTYPE)],
    "one name twice": [member("weights.pt", b"x"), member("weights.pt", b"y")],
    "more than there is room for": [
        member("weights.pt", b"x" * 60_000),
        member("artifact.bin", b"y" * 60_000),
    ],
    "a size that is not there": [member("weights.pt", b"x", size=10**15)],
    "a long header": [member("weights.pt", b"x", pax_headers={"comment": "x" * 9000})],
    "a file beside the manifest's": [
        member(MANIFEST, b'{"files": {}, "facts": {}}'),
        member("weights.pt", b"x"),
    ],
}


@pytest.mark.parametrize("kind", PACKED)
def test_an_object_is_bounded_before_it_is_unpacked(tmp_path: Path, kind: str) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for info, data in PACKED[kind]:
            if info.size == len(data):
                tar.addfile(info, io.BytesIO(data))
            else:
                packed.write(info.tobuf(tarfile.GNU_FORMAT) + data)
    (shared := tmp_path / "shared").mkdir()
    (shared / "average-a.tar").write_bytes(packed.getvalue())
    here = Store(tmp_path / "here", Limits(100_000, keep_free_bytes=0))
    assert not open_remote(str(shared), here).fetch("average-a") and not here.has("average-a")
    assert len(here.notes) == 1 and "is not whole" in here.notes[0] and not any(here.tmp.iterdir())


def test_a_link_in_a_shared_folder_is_neither_read_nor_written(store: Store, tmp_path: Path) -> None:
    stored(store, tmp_path)
    (victim := tmp_path / "victim").write_text("mine")
    remote = open_remote(str(tmp_path / "shared"), store)
    (link := tmp_path / "shared" / "average-a.tar").symlink_to(victim)
    assert not remote.fetch("average-a") and "no plain file" in store.notes[0]
    assert remote.push("average-a") and victim.read_text() == "mine" and not link.is_symlink()
    os.mkfifo(tmp_path / "shared" / "average-b.tar")
    assert not remote.fetch("average-b")  # and does not wait for a writer


def test_every_file_that_a_stage_leaves_is_known() -> None:
    assert {REPORTS, *(name for names in FILES.values() for name in names)} == set(KNOWN_FILES)


class Away:
    """An object store that does not answer."""

    calls = 0

    def open_reader(self, _: str) -> None:
        self.calls += 1
        raise ConnectionError("no route to host")

    write = open_reader


def test_a_store_that_does_not_answer_is_left_alone(store: Store, tmp_path: Path) -> None:
    stored(store, tmp_path)
    remote = Remote(Away(), "", store, ())
    assert not remote.fetch("x") and not remote.fetch("y") and not remote.push("average-a")
    assert remote.objects.calls == 1 and len(store.notes) == 1


def test_bad_places_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="a folder or s3://bucket/prefix"):
        open_remote("gs://bucket", store)
    with pytest.raises(ValueError, match="names a bucket"):
        open_remote("s3:///prefix", store)


def test_a_manifest_names_every_file(store: Store, tmp_path: Path) -> None:
    stored(store, tmp_path)
    told = json.loads((store.entries / "average-a" / MANIFEST).read_text())
    assert set(told["files"]) == {"stage_average.json", "weights.pt", "reports.jsonl"}
    assert all(len(f["sha256"]) == 64 for f in told["files"].values())
    shutil.rmtree(store.entries / "average-a")
    assert store.facts("average-a") is None


class Bucket(BaseHTTPRequestHandler):
    """As much of S3 as an upload and a download need."""

    objects: dict[str, bytes] = {}

    def do_PUT(self) -> None:
        self.objects[self.path.partition("?")[0]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200)

    def do_GET(self) -> None:
        found = self.objects.get(self.path.partition("?")[0])
        missing = b"<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>"
        self.answer(200 if found is not None else 404, missing if found is None else found)

    def answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def test_machines_share_through_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # no chunked bodies: the fake is simple
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    here, there = (Store(tmp_path / name, ROOMY) for name in ("here", "there"))
    mine, theirs = open_remote("s3://golf/stages", here), open_remote("s3://golf/stages", there)
    paths = stored(here, tmp_path)
    assert mine.push("average-a"), here.notes
    assert list(Bucket.objects) == ["/golf/stages/average-a.tar"]
    assert theirs.fetch("average-a") and not theirs.fetch("average-none"), there.notes
    (target := tmp_path / "t").mkdir()
    assert there.fetch("average-a", target) == {"key": "k"}
    assert (target / "weights.pt").read_bytes() == paths[1].read_bytes()
    Bucket.objects["/golf/stages/average-half.tar"] = Bucket.objects["/golf/stages/average-a.tar"][:3000]
    assert not theirs.fetch("average-half") and len(there.notes) == 1
    server.shutdown()
    server.server_close()
    assert not mine.push("average-a") and "does not answer" in here.notes[0]
