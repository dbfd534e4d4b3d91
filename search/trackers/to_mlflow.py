"""Trials as runs of an MLflow experiment of the study's name; MLFLOW_TRACKING_URI says where, without it a
folder beside the trials: `mlflow ui --backend-store-uri HOME/runs/STUDY/mlflow`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.trackers.files import files_of, points_of

TRIAL = "caddie.trial"  # the tag that a trial's run is found by
METRICS = 1000  # and so many others of each kind in one request: MLflow takes no more
OTHERS = 100
LONGEST = 500  # characters of a parameter, in every version of its store
URI = "MLFLOW_TRACKING_URI"


class ToMlflow:
    """See the head of this file. Raises what MLflow raises."""

    def __init__(self, runs: Path):
        from mlflow import MlflowClient  # pyright: ignore

        where = os.environ.get(URI)
        if not where:
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # newer versions want to be told
            where = (runs / "mlflow").absolute().as_uri()
        self.client: Any = MlflowClient(where)

    def log(self, facts: Mapping[str, Any], folder: Path) -> None:
        """One trial; what was begun of it before is replaced."""
        from mlflow.entities import Metric, Param, RunTag  # pyright: ignore

        client = self.client
        experiment = client.get_experiment_by_name(facts["study"])
        where = experiment.experiment_id if experiment else client.create_experiment(facts["study"])
        mark = f"{facts['study']}/{facts['number']}/{facts['began_s']}"
        for old in client.search_runs([where], f"tags.`{TRIAL}` = '{mark}'"):
            client.delete_run(old.info.run_id)
        began_ms = int(1000 * (facts["began_s"] or 0.0))
        ended_ms = int(1000 * (facts["ended_s"] or 0.0))
        run = client.create_run(
            where, start_time=began_ms, run_name=f"#{facts['number']}", tags={TRIAL: mark}
        ).info.run_id
        last = 0
        metrics: list[Any] = []
        for step, values in points_of(folder):
            at_ms = began_ms + int(1000 * values.get("elapsed_s", 0.0))
            metrics += [Metric(name, value, at_ms, step) for name, value in values.items()]
            last = step
        metrics += [Metric(name, value, ended_ms, last) for name, value in facts["figures"].items()]
        params: list[Any] = [Param(name, str(value)[:LONGEST]) for name, value in facts["settings"].items()]
        texts = {**facts["texts"], **{f"inactive/{n}": v for n, v in facts["inactive"].items()}}
        texts |= {"findings": "; ".join(facts["findings"])} if facts["findings"] else {}
        tags: list[Any] = [RunTag(name, str(value)) for name, value in texts.items()]
        for k in range(0, len(metrics), METRICS):
            client.log_batch(run, metrics=metrics[k : k + METRICS])
        for k in range(0, max(len(params), len(tags)), OTHERS):
            client.log_batch(run, params=params[k : k + OTHERS], tags=tags[k : k + OTHERS])
        for path in files_of(folder):
            client.log_artifact(run, str(path))
        client.set_terminated(run, STATES.get(facts["texts"]["state"], "FINISHED"), ended_ms)


STATES = {"failed": "FAILED", "pruned": "KILLED"}
