"""Live(session, study): a study's note, figures and report as it stands now, for the dashboard.

The report is made again only when something changed, and no sooner than RESTS times as long after the last
time as that took: a page that is left open costs a running study little.
"""

import json
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna
import optuna_dashboard  # pyright: ignore[reportMissingTypeStubs]
import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]

from pages.claimed import newest_answers
from pages.facts import Facts, facts_of
from pages.figures import all_figures
from pages.html import page_of
from pages.words import in_its_unit, study_note
from search.common.attributes import CONFIRMED
from search.session.session import Session

RESTS = 10.0
TITLE = 36  # characters of a line: a narrow window's column
UNDER_PX = 70  # of a legend under the axis: above, it would stand on the title
BUTTONS = "zoom pan select lasso zoomin zoomout autoscale resetscale toimage".split()  # on it, too


class Live:
    """Safe in several threads."""

    def __init__(self, session: Session, study: optuna.Study) -> None:
        self.session = replace(session, optuna_study=study)
        self.limits = session.study.limits
        self.num_reports = session.study.num_reports
        self.in_nats = session.study.in_nats
        self._reading = threading.Lock()
        self._facts: Facts | None = None
        self._plots: Mapping[str, str] = {}
        self._page: tuple[Facts, bytes] | None = None
        self._state: object = None  # that the facts were read from
        self._next_s = 0.0

    def note(self) -> str:
        """Of the newest facts that there are; without results until the first are read."""
        self.look()
        return study_note(self.session, self._facts)

    def best(self) -> int | None:
        """The trial that the newest facts, and so the note, call the best."""
        self.look()
        facts = self._facts
        return facts.best[0] if facts and facts.best else None

    def plots(self) -> Mapping[str, str]:
        """Our figures as optuna-dashboard's attributes; none until the first are drawn."""
        self.look()
        return self._plots

    def page(self) -> bytes:
        """The report, of now or of a moment ago."""
        facts = self.facts()
        if self._page is None or self._page[0] is not facts:
            self._page = (facts, page_of(facts).encode())
        return self._page[1]

    def look(self) -> None:
        """Has the facts read where it is time; returns at once."""
        if time.monotonic() >= self._next_s and not self._reading.locked():
            threading.Thread(target=self.facts, daemon=True).start()

    def facts(self) -> Facts:
        """Of the study as it stands, or stood when it was last time to read it."""
        with self._reading:
            began_s = time.monotonic()
            if self._facts is None or (began_s >= self._next_s and self.state() != self._state):
                self._state = self.state()
                self._facts = facts_of(self.session)
                self._plots = attributes_of(self._facts)
            if began_s >= self._next_s:
                self._next_s = time.monotonic() + RESTS * (time.monotonic() - began_s)
            return self._facts

    def state(self) -> object:
        """What the facts depend on; equal while nothing changed."""
        study = self.session.optuna_study
        trials = study.get_trials(deepcopy=False)
        counts = Counter(trial.state for trial in trials)
        ends = [t.datetime_complete for t in trials if t.datetime_complete is not None]
        reports = sum(len(t.intermediate_values) for t in trials)
        answers = newest_answers(self.session.folders.home)
        confirmed = repr(study.user_attrs.get(CONFIRMED))
        return counts, max(ends, default=None), reports, confirmed, [stamp for stamp, _ in answers]


def attributes_of(facts: Facts) -> dict[str, str]:
    """The figures, by optuna-dashboard's own function: in a study that is in memory alone, so that looking
    writes nothing into the database."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    figures = json.loads(in_its_unit(facts, json.dumps(all_figures(facts))))
    for name, figure in figures.items():
        height = max(450, figure["layout"]["height"])
        title = {"text": "<br>".join(textwrap.wrap(name, TITLE)), "font": {"size": 16}, "x": 0.02}
        title |= {"y": 0.98, "yref": "container", "yanchor": "top"}
        under = {"orientation": "h", "x": 0, "y": -UNDER_PX / (height - 140), "yanchor": "top"}
        layout = figure["layout"] | {"title": title, "legend": under, "modebar": {"remove": BUTTONS}}
        layout |= {"height": height, "margin": layout["margin"] | {"t": 60}}
        drawn = go.Figure({"data": figure["data"], "layout": layout}, skip_invalid=False)
        optuna_dashboard.save_plotly_graph_object(study, drawn, graph_object_id=identifier(name))
    found: dict[str, Any] = study._storage.get_study_system_attrs(study._study_id)  # pyright: ignore[reportPrivateUsage]
    return found


def identifier(name: str) -> str:
    """As HTML takes it."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())
