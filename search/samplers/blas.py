"""@one_thread: what the function does in linear algebra runs on one thread.

A search's matrices have some hundred rows, and its workers are many: BLAS threads that wait for each other on
cores which others use cost a proposal several times its CPU seconds (docs/scale.md). On one thread the sums
are also the same on every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from threadpoolctl import ThreadpoolController  # pyright: ignore[reportMissingTypeStubs]

P = ParamSpec("P")
T = TypeVar("T")


@functools.cache
def controller() -> ThreadpoolController:
    """The libraries that are loaded at the first call: a sampler imports NumPy and SciPy before it."""
    return ThreadpoolController()


def one_thread(function: Callable[P, T]) -> Callable[P, T]:
    """The function, on one BLAS thread while it runs."""

    @functools.wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> T:
        with controller().limit(limits=1, user_api="blas"):  # pyright: ignore
            return function(*args, **kwargs)

    return limited
