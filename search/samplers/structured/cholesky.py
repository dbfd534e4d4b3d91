"""The kernel system of n observations: K + noise = L Lᵀ, L lower triangular."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve  # pyright: ignore

Array = NDArray[np.float64]


def triangle(kernel: Array, noise: Array) -> Array:
    """L [n, n] of the kernel [n, n], which stays as it is, and the noise's variances [n]."""
    system = kernel.copy()
    np.fill_diagonal(system, kernel.diagonal() + noise)
    return np.asarray(np.linalg.cholesky(system), dtype=np.float64)


def solved(factor: Array, right: Array) -> Array:
    """x of L Lᵀ x = right, for the lower triangle `factor` = L."""
    return np.asarray(cho_solve((factor, True), right), dtype=np.float64)
