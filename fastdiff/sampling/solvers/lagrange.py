"""Weights of the multistep methods: integrals of Lagrange polynomials."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)


def lagrange_weights(nodes: Sequence[float], start: float, end: float, rate: float = 0.0) -> list[float]:
    """For each node j, ``integral from start to end of exp(rate * (u - end)) * L_j(u) du``.

    L_j is the Lagrange polynomial that is 1 at node j and 0 at the others: the weights with which values at the nodes
    stand for the integral. Gauss-Legendre quadrature on pieces no longer than 8 / rate, so to float64's last digits.
    """
    pieces = max(1, math.ceil(abs(rate * (end - start)) / 8))
    bounds = np.linspace(start, end, pieces + 1)
    half, middle = np.diff(bounds) / 2, (bounds[1:] + bounds[:-1]) / 2
    u = (middle[:, None] + half[:, None] * _NODES).ravel()
    weights = (half[:, None] * _WEIGHTS).ravel() * np.exp(rate * (u - end))
    result = []
    for j, node in enumerate(nodes):
        polynomial = np.ones_like(u)
        for k, other in enumerate(nodes):
            if k != j:
                polynomial *= (u - other) / (node - other)
        result.append(float(weights @ polynomial))
    return result
