"""Workers on other machines: a Ray cluster of several nodes, Slurm's jobs (as processes of this machine),
and two hosts with networks of their own that join one study by its URL."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import sqlalchemy

from search import run
from search.common.attributes import CODE_HASH, HARDWARE
from search.common.options import RunOptions, WorkerSpec
from search.engines import base as engines
from search.engines.base import Ended, Task, check_reachable, cluster_for, make_engine, parse_options
from search.run import run_study
from search.study.load import find_study
from search.workers.prepare import read_command, worker_command
from tests.search.db_helpers import held_server, until
from tests.search.engines.test_external import over_tcp
from tests.search.fake_studies import FAKE, begin, caddie, command, environment, search, write_study

pytestmark = pytest.mark.slow


def read_states(study: Path, url: str) -> list[str]:
    """The states of every trial, in the order of their numbers."""
    import optuna

    from search.storage.patient import open_storage

    stored = optuna.load_study(study_name=study.stem, storage=open_storage(url, worker=True))
    trials = stored.get_trials()
    assert [t.number for t in trials] == list(range(len(trials)))
    params = [tuple(sorted(t.params.items())) for t in trials if t.state.name != "FAIL"]
    assert len(set(params)) == len(params), "a configuration ran twice"
    return [t.state.name for t in trials]


@contextmanager
def ray_cluster(nodes: int) -> Iterator[object]:
    """A head without CPUs and `nodes` nodes of one CPU each: real raylets, one process tree for each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    os.environ["RAY_worker_niceness"] = "0"  # Ray's 15 would starve beside other tests
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.long
def test_a_ray_cluster_loses_a_node(tmp_path: Path) -> None:
    """Three nodes, one of them is taken away in mid-study: exactly the asked-for trials are finished."""
    study = write_study(tmp_path, "onray", "ok@1.0")
    with held_server() as (_, url), over_tcp(url) as external, ray_cluster(2) as cluster:
        third = cluster.add_node(num_cpus=1)  # type: ignore[attr-defined]
        words = [*search(study, tmp_path, 6, 3), "--engine=ray"]
        words += [f"--engine-option=address={cluster.address}"]  # type: ignore[attr-defined]
        running = begin(*words, CADDIE_STORAGE=external)
        with sqlalchemy.create_engine(url).connect() as database:
            until(lambda: num_complete(database) > 0 or running.poll() is not None, 200)
        cluster.remove_node(third, allow_graceful=False)  # type: ignore[attr-defined]
        out, err = running.communicate(timeout=250)
        assert running.returncode == 0, out + err
        assert "6 of 6 trials done" in out
        states = read_states(study, external)
        assert states.count("COMPLETE") == 6 and "RUNNING" not in states
        password = sqlalchemy.make_url(external).password
        assert password and password not in out + err


def num_complete(database: sqlalchemy.Connection) -> int:
    with database.begin():
        if database.scalar(sqlalchemy.text("select to_regclass('trials')")) is None:
            return 0
        return database.scalar(sqlalchemy.text("select count(*) from trials where state = 'COMPLETE'")) or 0


@pytest.mark.long
def test_slurm_jobs_as_local_processes(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    study = write_study(tmp_path, "onslurm")
    with held_server() as (_, url), over_tcp(url) as external:
        words = [*search(study, tmp_path, 4, 2), "--engine=slurm", "--engine-option=cluster=local"]
        ran = caddie(*words, CADDIE_STORAGE=external)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "4 of 4 trials done" in ran.stdout
        assert read_states(study, external).count("COMPLETE") == 4


@pytest.mark.long
def test_a_worker_that_cannot_work_says_why(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    study = write_study(tmp_path, "refused", "refuse")
    with held_server() as (_, url), over_tcp(url) as external:
        words = [*search(study, tmp_path, 20, 1), "--engine=slurm", "--engine-option=cluster=local"]
        ran = caddie(*words, CADDIE_STORAGE=external)
        assert ran.returncode == 2, ran.stdout + ran.stderr
        assert "shard 3 is cut" in ran.stderr and "a worker on" in ran.stderr


def can_make_hosts() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    tried = subprocess.run(["ip", "netns", "add", "caddie-probe"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", "caddie-probe"], capture_output=True, check=False)
    return tried.returncode == 0


@contextmanager
def host(name: str, number: int) -> Iterator[tuple[str, str]]:
    """(namespace, its address); 10.77.N.1 is this machine as the host sees it."""
    outside, inside = f"cdh{number}", f"cdg{number}"
    commands = [
        f"netns add {name}",
        f"link add {outside} type veth peer name {inside}",
        f"link set {inside} netns {name}",
        f"addr add 10.77.{number}.1/24 dev {outside}",
        f"link set {outside} up",
        f"-n {name} addr add 10.77.{number}.2/24 dev {inside}",
        f"-n {name} link set {inside} up",
        f"-n {name} link set lo up",
    ]
    try:
        for words in commands:
            subprocess.run(["ip", *words.split()], check=True, capture_output=True)
        yield name, f"10.77.{number}.1"
    finally:
        subprocess.run(["ip", "link", "del", outside], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.mark.long
@pytest.mark.skipif(not can_make_hosts(), reason="network namespaces need root and ip")
def test_two_hosts_share_one_study(tmp_path: Path) -> None:
    """Each has its own network and its own home; the database is the only thing that they share."""
    study = write_study(tmp_path, "hosts", "ok@0.5")
    with held_server() as (_, url), ExitStack() as stack:
        running: list[subprocess.Popen[str]] = []
        for number in (1, 2):
            name, address = stack.enter_context(host(f"caddie-{os.getpid()}-{number}", number))
            external = stack.enter_context(over_tcp(url, address))
            home = tmp_path / f"home-{number}"
            home.mkdir()
            words = search(study, home, 10, 1)
            inside = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c"]
            inside += [f'hostname host-{number}; exec "$@"', "sh", *command(*words)]
            running.append(
                subprocess.Popen(
                    inside,
                    env=environment(CADDIE_STORAGE=external),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd="/",
                )
            )
        outputs = [process.communicate(timeout=120) for process in running]
        assert [p.returncode for p in running] == [0, 0], outputs
        with over_tcp(url) as external:
            states = read_states(study, external)
            assert states.count("COMPLETE") == 10 and set(states) == {"COMPLETE"}
            hosts = workers(study, external)
    assert hosts == {"host-1", "host-2"}, hosts


def workers(study: Path, url: str) -> set[str]:
    import optuna

    from search.storage.patient import open_storage

    stored = optuna.load_study(study_name=study.stem, storage=open_storage(url, worker=True))
    return {str(t.user_attrs["worker"]).split(":")[0] for t in stored.get_trials()}


def test_the_private_database_is_out_of_reach() -> None:
    with pytest.raises(ValueError, match="CADDIE_STORAGE=postgresql"):
        check_reachable("", "ray")
    with pytest.raises(ValueError, match="socket"):
        check_reachable("postgresql://u:p@/db?host=/tmp/x", "ray")
    check_reachable("postgresql://u:p@db.example/db", "ray")


def test_options_of_engines(tmp_path: Path) -> None:
    assert parse_options(["address=auto", "cpus=2"]) == {"address": "auto", "cpus": 2}
    with pytest.raises(ValueError, match="KEY=VALUE"):
        parse_options(["address"])
    with pytest.raises(ValueError, match="local, ray, slurm"):
        make_engine("condor", {}, folder=tmp_path)


def test_an_engine_and_its_options_are_checked_before_anything_is_begun(tmp_path: Path) -> None:
    study, url = find_study(write_study(tmp_path, "checked")), "postgresql://u:p@db.example/db"
    assert cluster_for(study, "local", [], url="") is None
    found = cluster_for(study, "slurm", ["gpus=2", "timeout_min=5"], url=url)
    assert found is not None and found.gpus == 2 and found.options == {"timeout_min": 5}
    with pytest.raises(ValueError, match="engine is local and got 'cpus=2'"):
        cluster_for(study, "local", ["cpus=2"], url=url)
    with pytest.raises(ValueError, match="local, ray, slurm, but got 'condor'"):
        cluster_for(study, "condor", [], url="")
    with pytest.raises(ValueError, match="socket"):
        cluster_for(study, "ray", [], url="")


def test_a_worker_reads_all_that_it_is_told(tmp_path: Path) -> None:
    spec = WorkerSpec(
        study=tmp_path / "s.toml",
        home=tmp_path,
        target=9,
        index=5,
        threads=3,
        prepare=True,
        trainer=tmp_path / "t.py",
        sampler="structured",
        mixed=True,
        cache=tmp_path / "c",
        cache_size="7GB",
        cache_shared="s3://b/p",
        niceness=4,
        fork=False,
    )
    for field in dataclasses.fields(WorkerSpec):
        default = None if field.default is dataclasses.MISSING else field.default
        assert getattr(spec, field.name) != default, f"{field.name} would not be seen to be lost"
    command = worker_command(spec)
    assert command[1:3] == ["-m", "search.workers.worker"] and "/s.toml" in " ".join(command)
    assert read_command(command[3:]) == (spec, True)
    plain = WorkerSpec(tmp_path / "s.toml", tmp_path, 9)
    assert read_command(worker_command(plain)[3:]) == (plain, True)
    assert read_command(worker_command(plain)[4:]) == (plain, False)


class Recorder:
    """An engine that runs nothing."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def submit(self, tasks: Sequence[Task]) -> None:
        self.tasks = list(tasks)

    def ended(self) -> list[Ended]:
        return []

    def alive(self) -> bool:
        return False

    def cancel(self) -> None: ...


def test_a_cluster_is_told_and_checked_like_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same spec to every worker, the same refusals; only who says on what hardware is another."""
    study, engine, here = write_study(tmp_path, "told"), Recorder(), list[list[WorkerSpec]]()
    other, foreign = tmp_path / "other.py", tmp_path / "foreign.py"
    other.write_text(FAKE.read_text() + "\n# another version\n")
    foreign.write_text("print('nothing of the contract')\n")

    def launch(session: object, specs: list[WorkerSpec], progress: object, *, external: bool, gpus: object):
        assert external
        here.append(specs)

    monkeypatch.setattr(engines, "make_engine", lambda name, options, folder: engine)
    monkeypatch.setattr(run, "launch", launch)
    monkeypatch.setattr(run, "quiet_log", lambda: None)  # this process's log is pytest's
    with held_server() as (_, url), over_tcp(url) as external:

        def attributes() -> dict[str, object]:
            import optuna

            from search.storage.patient import open_storage

            return optuna.load_study(
                study_name="told", storage=open_storage(external, worker=True)
            ).user_attrs

        def there() -> list[WorkerSpec]:
            assert all(task.spec.prepare for task in engine.tasks)
            return [dataclasses.replace(task.spec, prepare=False) for task in engine.tasks]

        spec = WorkerSpec(
            study, tmp_path, 4, trainer=Path(os.path.relpath(FAKE)), sampler="structured", cache=tmp_path
        )
        options = RunOptions(spec, external, workers=2, engine="ray")
        run_study(options)
        assert CODE_HASH in attributes() and HARDWARE not in attributes()
        assert [s.index for s in there()] == [0, 1]
        command = worker_command(engine.tasks[1].spec)
        read, _ = read_command(command[3:])
        assert (read.sampler, read.mixed, read.trainer, read.prepare) == ("structured", False, FAKE, True)
        assert external not in " ".join(command)
        run_study(dataclasses.replace(options, engine="local"))
        assert here[0] == there()
        assert HARDWARE in attributes()
        for name in ("ray", "local"):

            def run_with(name: str = name, **more: object) -> None:
                worker = dataclasses.replace(spec, **{"trainer": other, **more})  # type: ignore[arg-type]
                run_study(dataclasses.replace(options, engine=name, worker=worker))

            with pytest.raises(ValueError, match="run the same code"):
                run_with()
            with pytest.raises(ValueError, match="takes config"):
                run_with(trainer=foreign)
            with pytest.raises(ValueError, match="sampler must be one of"):
                run_with(sampler="tpo")
            run_with(mixed=True)
        assert there() == here[-1] and here[-1][0].mixed


@pytest.mark.long
def test_no_cluster_is_one_clear_error(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    study = write_study(tmp_path, "nocluster")
    with held_server() as (_, url), over_tcp(url) as external:
        words = [*search(study, tmp_path, 4, 2), "--engine=ray", "--engine-option=address=127.0.0.1:1"]
        ran = caddie(*words, CADDIE_STORAGE=external)
        assert ran.returncode == 2 and "ray start --head" in ran.stderr, ran.stdout + ran.stderr
        assert ran.stderr.count("error:") == 1
