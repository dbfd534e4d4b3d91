"""The dashboard in a real browser: infeasible trials are known, the best trial is feasible, notes show."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest

from pages.facts import facts_of
from pages.live import Live
from pages.report import json_of
from search.report import dashboard
from search.session.session import Session, open_session, read_session
from search.storage import patient as storage
from search.study.load import find_study
from search.workers import record as notes
from search.workers.exact import run_exactly
from tests.pages.made_up import made_up_answers, made_up_trials
from tests.search.db_helpers import first_line, held_server, python
from tests.search.fake_studies import begin, caddie, write_study

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1400,1800"
).split()
SERVE = "import sys; from pathlib import Path; from search.report.dashboard import serve; "
SERVE += "serve(sys.stdin.readline(), 'shown', port=int(sys.argv[1]), artifact_dir=Path(sys.argv[2]))"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with held_server() as held:
        yield held[1]


@pytest.fixture(scope="module")
def page(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a served study of 6 trials; the three with the lowest values are infeasible."""
    folder = tmp_path_factory.mktemp("artifacts")
    store = dashboard.artifact_store(folder)

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0.0, 5.0)
        for step in range(4):
            trial.report(x + 4.0 - step, step)
        trial.set_constraint("bytes", 2.5 - x)
        trial.set_constraint("train_s", -1.0)
        notes.save_note(trial, f"# Note of {x}\n\n**14,300,000** bytes")
        text = folder.parent / "log.txt"
        text.write_text("step:1 loss:2\n")
        notes.save_trial_artifact(trial, text, store)
        notes.save_curve(trial, {0: 4.0, 1: 2.5, 2: 2.0}, label="val_bpb <proxy>", store=store)
        return x

    opened = storage.open_storage(url, worker=False)
    study = storage.open_study(opened, "shown", url=url)
    for x in range(6):
        study.enqueue_trial({"x": float(x)})
    run_exactly(study, objective, target=6, url=url)

    process = python("-c", SERVE, "0", str(folder), stdin=-1)
    assert process.stdin is not None
    process.stdin.write(url + "\n")
    process.stdin.flush()
    try:
        line = first_line(process)
        assert "@" not in line  # no database URL, so no password
        yield re.findall(r"http://127\.0\.0\.1:\d+/dashboard/studies/\d+\?token=[\w-]{32}", line)[0]
    finally:
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)
    assert process.returncode == 0 and line.rpartition("=")[2] not in said[0] + said[1]  # no log of requests


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not (Path(CHROMIUM).exists() and Path(DRIVER).exists()):
        pytest.skip(f"no Chromium with its driver at {CHROMIUM} and {DRIVER}")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


def see(browser: Any, address: str, *texts: str, picture: str) -> str:
    """Opens the page, waits for every text, keeps a screenshot when CADDIE_SCREENSHOTS names a folder."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    def body() -> str:
        return browser.find_element(By.TAG_NAME, "body").text

    browser.get(address)
    WebDriverWait(browser, 40).until(lambda _: all(text in body() for text in texts))
    folder = os.environ.get("CADDIE_SCREENSHOTS")
    if folder:
        browser.save_screenshot(str(Path(folder) / picture))
    return body()


def visitor() -> urllib.request.OpenerDirector:
    """A browser without a face: it keeps cookies."""
    return urllib.request.build_opener(urllib.request.HTTPCookieProcessor())


def fetch(page: str) -> dict[str, Any]:
    opener = visitor()
    with opener.open(page, timeout=20) as answer:
        assert "token=" not in answer.read().decode()
    with opener.open(page.partition("?")[0].replace("/dashboard/", "/api/"), timeout=20) as answer:
        return json.load(answer)


def ask(page: str, method: str = "GET", path: str = "", body: bytes = b"", **headers: str) -> tuple[int, str]:
    """(status, cookie) of one request with these headers, Host included."""
    parts = urllib.parse.urlsplit(page)
    connection = http.client.HTTPConnection(str(parts.netloc), timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named |= {"Content-Type": "application/json"} if body else {}
    connection.request(method, path or f"{parts.path}?{parts.query}", body=body or None, headers=named)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, (answer.headers["Set-Cookie"] or "")


def test_only_who_has_the_address_is_let_in(page: str):
    parts = urllib.parse.urlsplit(page)
    status, kept = ask(page)
    assert status == 200 and kept.endswith("; Path=/; HttpOnly; SameSite=Strict")
    cookie = kept.partition(";")[0]
    study = parts.path.replace("/dashboard/", "/api/")
    for path in ("/", parts.path, study, "/static/bundle.js", "/api/studies"):
        assert ask(page, path=path)[0] == 403, path
        assert ask(page, path=path, Cookie=cookie)[0] in (200, 302, 404), path
    for bad in (f"{parts.path}?token=", f"{parts.path}?token={'x' * 32}", f"{parts.path}?token=%C3%A9%ff"):
        assert ask(page, path=bad)[0] == 403, bad
    for method, path in (
        ("POST", f"{study}/rename"),
        ("DELETE", study),
        ("PUT", study),
        ("POST", f"{parts.path}?{parts.query}"),
    ):
        assert ask(page, method, path)[0] == 403, path
        assert ask(page, method, path, Cookie=cookie.replace("=", "=x"))[0] == 403
        assert ask(page, method, path, Cookie=cookie, Origin="http://evil.example")[0] == 403
        assert ask(page, method, path, Cookie=cookie, Origin="null")[0] == 403
        for site in ("cross-site", "same-site"):
            assert ask(page, method, path, Cookie=cookie, Sec_Fetch_Site=site)[0] == 403
    for host in (
        "evil.example",
        f"evil.example:{parts.port}",
        "127.0.0.1.evil.example",
        "localhost@evil",
        "",
    ):
        assert ask(page, Host=host)[0] == 403, host  # a name of somebody's that leads to this machine
        assert ask(page, path=study, Host=host, Cookie=cookie)[0] == 403, host
    for host in (f"localhost:{parts.port}", "LOCALHOST", "[::1]:9000", "127.0.0.1"):
        assert ask(page, path=study, Host=host, Cookie=cookie, Origin=f"http://{host}")[0] == 200, host
    assert ask(page, Sec_Fetch_Site="cross-site")[0] == 200  # a link in a chat or a notebook
    note = ask(page, "PUT", f"{study}/note", b'{"body": "seen", "version": 1}', Cookie=f"a=b; {cookie}")
    assert note[0] == 204 and fetch(page)["note"]["body"] == "seen"


def test_the_pages_programming_interface_knows_what_is_feasible(page: str):
    answer = fetch(page)
    constraints = {trial["number"]: trial["constraints"] for trial in answer["trials"]}
    assert constraints[0] == [2.5, -1.0] and constraints[3] == [-0.5, -1.0]
    assert [trial["number"] for trial in answer["best_trials"]] == [3]
    assert len(answer["trials"][0]["artifacts"]) == 2


def test_the_study_page(page: str, browser: Any):
    body = see(browser, page, "Best Trial", "Hyperparameter Importance", picture="study.png")
    assert "Best Trial (number=3)" in body


def test_a_trial_page(page: str, browser: Any):
    base, _, token = page.partition("?")
    see(browser, f"{base}/trials?numbers=4&{token}", "Note of 4.0", "log.txt", "val_bpb", picture="trial.png")


def test_bad_requests_have_one_clear_error(page: str, url: str, tmp_path: Path):
    with pytest.raises(storage.StorageError, match=r"no 'shwn' here. Known: shown"):
        dashboard.make_dashboard(url, "shwn", port=0, artifact_dir=tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"but {port} says: .* in use. Use --port \d+"):
            dashboard.make_dashboard(url, "shown", port=port, artifact_dir=tmp_path)


def test_with_only_infeasible_trials_the_least_bad_is_best(url: str):
    opened = storage.open_storage(url, worker=False)  # makes the tables where no test before did
    study = storage.open_study(opened, "all-bad", url=url, direction="maximize")
    for value, excess in ((1.0, 0.3), (2.0, 0.1), (9.0, 0.2)):
        study.add_trial(optuna.create_trial(value=value, constraints={"bytes": excess}))
    shown = dashboard.FeasibleStorage(optuna.storages.RDBStorage(url))
    assert shown.get_best_trial(shown.get_study_id_from_name("all-bad")).value == 2.0
    study.add_trial(optuna.create_trial(value=0.5, constraints={"bytes": -0.1}))
    assert shown.get_best_trial(shown.get_study_id_from_name("all-bad")).value == 0.5


@pytest.fixture(scope="module")
def live(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Session]]:
    """(the address of a served study with made-up trials and answers, its session)."""
    home = tmp_path_factory.mktemp("home")
    session = open_session(find_study(write_study(home, "made_up")), home=home, storage=url, environ={})
    study = session.optuna_study
    study.add_trials(made_up_trials(40))
    study.set_user_attr("baseline", {"val_bpb": 2.8377, "hash": "0"})
    best = facts_of(session).best[0]
    made_up_answers(home, best)
    server, page = dashboard.make_dashboard(
        url, "made_up", port=0, artifact_dir=home / "artifacts", live=partial(Live, session)
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield page, session
    finally:
        server.shutdown()
        server.server_close()


def test_the_report_is_served_live_to_who_has_the_token(live: tuple[str, Session]):
    page, session = live
    address = f"{page.partition('/dashboard/')[0]}/report"
    opener = visitor()
    assert ask(page, path="/report")[0] == 403 and ask(page, path="/report", Host="evil.example")[0] == 403
    opener.open(f"{address}?{page.partition('?')[2]}", timeout=20).read()
    with opener.open(address, timeout=60) as answer:
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        text = answer.read().decode()
    assert "<h1>made_up</h1>" in text and "Ablation of #" in text and "token=" not in text
    cookie = ask(page)[1].partition(";")[0]
    assert ask(page, path="/report", Cookie=cookie)[0] == 200
    assert ask(page, path="/report", Cookie=cookie, Origin="http://evil.example")[0] == 403
    kept = {"baseline", "study_hash", "study_identity", "study_file"}
    assert session.optuna_study.user_attrs.keys() <= kept, "looking writes nothing"


def test_the_command_serves_the_report(live: tuple[str, Session]):
    _, session = live
    home = session.folders.home
    words = (f"--study={home / 'made_up.toml'}", f"--home={home}", f"--storage={session.url}")
    process = begin("dashboard", *words, "--port=0")
    try:
        page = re.findall(r"http://\S+", first_line(process))[0]
        report = re.findall(r"http://\S+/report\?token=\S+", first_line(process))[0]
        opener = visitor()
        opener.open(report, timeout=20).read()
        text = opener.open(report.partition("?")[0], timeout=60).read().decode()
        assert "<h1>made_up</h1>" in text and "<h2>Time</h2>" in text
        answer = fetch(page)
        named = re.findall(r"Best: trial #(\d+)", text)[0]
        assert [trial["number"] for trial in answer["best_trials"]] == [int(named)]
    finally:
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)
    assert process.returncode == 0, said


def test_the_command_writes_all_that_is_stored(live: tuple[str, Session]):
    """A report reads a study in brief: nothing that it tells may be missing there."""
    _, session = live
    home = session.folders.home
    words = (f"--study={home / 'made_up.toml'}", f"--home={home}", f"--storage={session.url}")
    ran = caddie("report", *words, cwd=home)
    assert ran.returncode == 0 and ran.stdout == "runs/made_up/report.html\n", ran
    assert "<h2>Time</h2>" in (home / "runs/made_up/report.html").read_text()
    brief = read_session(session.study, home=home, storage=session.url, environ={}, brief=True)
    assert json_of(facts_of(brief)) == json_of(facts_of(session))


def test_what_is_shown_is_short_and_what_is_stored_stays(live: tuple[str, Session]):
    page, session = live
    opener = visitor()
    opener.open(f"{page.partition('/dashboard/')[0]}/report?{page.partition('?')[2]}", timeout=20).read()
    opener.open(f"{page.partition('/dashboard/')[0]}/report", timeout=60).read()
    answer = fetch(page)
    assert {"progress", "ablation", "compared"} <= {plot["id"] for plot in answer["plotly_graph_objects"]}
    assert "(/report)" in answer["note"]["body"] and answer["note"]["version"] == 0
    firsts = [trial["note"]["body"].splitlines()[0] for trial in answer["trials"]]
    for words in ("within all limits", "over a limit: ", "pruned: given up", "failed: "):
        assert any(words in first for first in firsts), words
    for facts in (answer, *answer["trials"]):
        assert all(len(a["value"]) <= 240 and "{" not in a["value"] for a in facts["user_attrs"])
    steps = {point["step"] for trial in answer["trials"] for point in trial["intermediate_values"]}
    assert steps == {25, 50, 75, 100}
    with opener.open(page.partition("?")[0].replace("/dashboard/studies/", "/csv/"), timeout=20) as csv:
        assert "{'matrix_lr': " in csv.read().decode(), "the settings, as they are stored"
    stored = session.optuna_study.get_trials(deepcopy=False)
    assert all(isinstance(t.user_attrs["config"], dict) for t in stored)
    study_id = session.optuna_study._study_id  # pyright: ignore[reportPrivateUsage]
    assert not session.optuna_study._storage.get_study_system_attrs(study_id)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("width", [800, 1440])
def test_pages_of_a_study_of_ours_fit_the_window(live: tuple[str, Session], browser: Any, width: int):
    page, session = live
    base, _, token = page.partition("?")
    stored = session.optuna_study.get_trials(deepcopy=False)
    over = next(t for t in stored if t.state.name == "COMPLETE" and max(t.constraints.values()) > 0)
    browser.set_window_size(width, 1200)
    for path, words in (
        (f"/trials?numbers={over.number}&{token}", ("over a limit: ", "inactive", "User Attributes")),
        (f"/note?{token}", ("The whole report", "Best: trial #")),
        (f"?{token}", ("Study User Attributes", "Ablation", "Learning curves")),
    ):
        see(browser, f"{base}{path}", *words, picture=f"live{width}{path[1:3]}.png")
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= browser.execute_script("return window.innerWidth"), path
    cut = """return [...document.querySelectorAll('[id^=user-defined-plot]')]
        .filter(e => e.scrollHeight > e.clientHeight + 1).map(e => e.id)"""
    assert browser.execute_script(cut) == [], "a figure is higher than its place"
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
