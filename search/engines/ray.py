"""Ray: every worker is a Ray task in a placement group of its own that reserves a trial's GPUs on one node.

Ray brings the cluster, waiting for a node to come up (autoscaling) and running a task again when its node is
gone. Options: `address` (default "auto": a running cluster; Ray's own RAY_ADDRESS works too) and `cpus` per
worker (default 1).
"""

# pyright: basic
# (Ray's functions are only partly typed.)

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from search.engines.base import Ended, Task, run_task

CONNECT_S = 5.0
RETRIES = -1  # of a task whose node is gone: the study's count is exact without our help


def make(options: dict[str, Any], folder: Path) -> RayEngine:
    """Joins the cluster. Raises ValueError when there is none, or for an unknown option."""
    address, cpus = str(options.pop("address", "auto")), int(options.pop("cpus", 1))
    if options:
        raise ValueError(
            f"--engine ray takes the options address and cpus, but got {', '.join(sorted(options))}. Leave "
            "it out."
        )
    try:
        knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, namespace="caddie")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"--engine ray runs on a cluster that is up, but {address!r} is none: "
            f"{str(error).splitlines()[0]} Start one with `ray start --head`, and with "
            "`ray start --address=HOST:6379` on every other machine."
        ) from None
    return RayEngine(cpus)


def knock(address: str) -> None:
    """ConnectionError at once when nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        except OSError as error:
            raise ConnectionError(f"{error.strerror or error}.") from None


class RayEngine:
    def __init__(self, cpus: int):
        self.cpus = cpus
        self.running: dict[ray.ObjectRef[Ended], PlacementGroup] = {}

    def submit(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            bundle = {"CPU": float(self.cpus)} | ({"GPU": float(task.gpus)} if task.gpus else {})
            group = placement_group([bundle], strategy="STRICT_PACK")
            remote = ray.remote(
                num_cpus=self.cpus,
                num_gpus=task.gpus,
                max_retries=RETRIES,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0),
            )(run_task)
            self.running[remote.remote(task)] = group

    def ended(self) -> list[Ended]:
        if not self.running:
            return []
        ready, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        return [self._result(reference) for reference in ready]

    def _result(self, reference: ray.ObjectRef[Ended]) -> Ended:
        remove_placement_group(self.running.pop(reference))
        try:
            return ray.get(reference)
        except TaskCancelledError:
            return Ended(0, "", "the cluster")
        except RayTaskError as error:
            return Ended(2, str(error.cause or error).splitlines()[-1], "the cluster")
        except RayError as error:
            return Ended(1, str(error).splitlines()[0], "the cluster")

    def alive(self) -> bool:
        return bool(self.running)

    def cancel(self) -> None:
        for reference in self.running:
            ray.cancel(reference, force=False)
