"""A proposal's linear algebra runs on one thread, and nothing else is changed by it."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from search.samplers.caddie import CaddieSampler, one_thread


def threads() -> set[int]:
    assert np.__version__  # its BLAS is loaded
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_one_thread_inside_and_as_before_behind_it_whatever_happens():
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        assert one_thread(threads)() == {1}
        assert threads() == before

        def fails() -> None:
            assert threads() == {1}
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            one_thread(fails)()
        assert threads() == before


def test_a_worker_s_sampler_is_limited_so():
    assert hasattr(CaddieSampler.sample_relative, "__wrapped__")
