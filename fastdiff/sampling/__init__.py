"""Samplers: a solver is a table of coefficients, one row a model call, and one loop runs them all."""

from fastdiff.sampling.loop import Guidance, sample
from fastdiff.sampling.noise import seeded_noise
from fastdiff.sampling.settings import SamplingSettings
from fastdiff.sampling.solvers import SAMPLERS, SolverTable, ddim, flow_euler, solver_table

__all__ = [
    "SAMPLERS",
    "Guidance",
    "SamplingSettings",
    "SolverTable",
    "ddim",
    "flow_euler",
    "sample",
    "seeded_noise",
    "solver_table",
]
