"""read_params: the parameters of many trials, a row for each parameter and not for each trial: its name and
its distribution go over the wire once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from sqlalchemy import Connection, text

PARAMS = """
select param_name, distribution_json, array_agg(param_id), array_agg(trial_id), array_agg(param_value)
from trial_params where trial_id = any(:ids) group by 1, 2"""
Columns = tuple[dict[int, dict[str, Any]], dict[int, dict[str, BaseDistribution]]]


def read_params(connection: Connection, ids: Sequence[int], known: dict[str, BaseDistribution]) -> Columns:
    """trial -> its parameters, in the order of their suggestions, and their distributions. `known` keeps
    distributions by their JSON; new ones are added."""
    params: dict[int, dict[str, Any]] = {trial_id: {} for trial_id in ids}
    distributions: dict[int, dict[str, BaseDistribution]] = {trial_id: {} for trial_id in ids}
    heads: list[tuple[str, BaseDistribution]] = []
    keys, owners, kinds, values = list[int](), list[int](), list[int](), list[Any]()
    for name, written, its_keys, its_owners, its_values in connection.execute(text(PARAMS), {"ids": ids}):
        if written not in known:
            known[written] = json_to_distribution(written)
        keys += its_keys
        owners += its_owners
        kinds += repeat(len(heads), len(its_keys))
        values += map(known[written].to_external_repr, its_values)
        heads.append((name, known[written]))
    for k in sorted(range(len(keys)), key=keys.__getitem__):  # as they were suggested
        name, dist = heads[kinds[k]]
        params[owners[k]][name], distributions[owners[k]][name] = values[k], dist
    return params, distributions
