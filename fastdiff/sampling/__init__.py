"""Samplers: a solver is a table of coefficients, one row a model call, and one loop runs them all."""

from fastdiff.sampling.denoiser import PairedDenoiser
from fastdiff.sampling.guidance import ClassifierGuidance, Guidance, ProjectedGuidance
from fastdiff.sampling.interpolation import slerp
from fastdiff.sampling.learned_variance import ddpm_learned_variance
from fastdiff.sampling.likelihood import bits_per_dim, log_likelihood
from fastdiff.sampling.loop import run_table, sample
from fastdiff.sampling.ode import rk45
from fastdiff.sampling.predictor_corrector import langevin_step, predictor_corrector
from fastdiff.sampling.samplers import SAMPLERS, Sampler, solver_table
from fastdiff.sampling.schedule import Level, NoiseSchedule, schedule_of_ratios, schedule_of_times
from fastdiff.sampling.schedules import SCHEDULES
from fastdiff.sampling.settings import SamplingSettings
from fastdiff.sampling.table import SolverTable

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "ClassifierGuidance",
    "Guidance",
    "Level",
    "NoiseSchedule",
    "PairedDenoiser",
    "ProjectedGuidance",
    "Sampler",
    "SamplingSettings",
    "SolverTable",
    "bits_per_dim",
    "ddpm_learned_variance",
    "langevin_step",
    "log_likelihood",
    "predictor_corrector",
    "rk45",
    "run_table",
    "sample",
    "schedule_of_ratios",
    "schedule_of_times",
    "slerp",
    "solver_table",
]
