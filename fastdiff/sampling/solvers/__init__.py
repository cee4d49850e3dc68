"""Solvers: functions of a noise schedule and a prediction that return a :class:`fastdiff.sampling.SolverTable`."""

from fastdiff.sampling.solvers.adams import deis, ipndm, lms, pndm
from fastdiff.sampling.solvers.consistency import consistency, lcm, tcd
from fastdiff.sampling.solvers.dpm_singlestep import dpm_singlestep
from fastdiff.sampling.solvers.dpm_solver import dpm_multistep
from fastdiff.sampling.solvers.dpmpp_ancestral import dpmpp_2s_ancestral, dpmpp_sde
from fastdiff.sampling.solvers.first_order import ddim, ddim_inverse, ddpm, euler_ancestral
from fastdiff.sampling.solvers.sa import sa_solver
from fastdiff.sampling.solvers.score_sde import euler_maruyama, reverse_diffusion
from fastdiff.sampling.solvers.two_stage import dpm2, dpm2_ancestral, edm, flow_heun, heun
from fastdiff.sampling.solvers.unipc import unipc

__all__ = [
    "consistency",
    "ddim",
    "ddim_inverse",
    "ddpm",
    "deis",
    "dpm2",
    "dpm2_ancestral",
    "dpm_multistep",
    "dpm_singlestep",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "edm",
    "euler_ancestral",
    "euler_maruyama",
    "flow_heun",
    "heun",
    "ipndm",
    "lcm",
    "lms",
    "pndm",
    "reverse_diffusion",
    "sa_solver",
    "tcd",
    "unipc",
]
