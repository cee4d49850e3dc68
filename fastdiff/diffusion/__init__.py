"""The mathematics of diffusion, in float64 on the host: processes, predictions, times and losses.

Everything here follows from ``x_t = alpha(t) * x0 + sigma(t) * eps``. A :mod:`process <fastdiff.diffusion.processes>`
says what alpha and sigma are, a :mod:`prediction <fastdiff.diffusion.predictions>` says which combination of x0 and
eps the network returns.
"""

from fastdiff.diffusion.consistency import consistency_loss
from fastdiff.diffusion.continuous import EDM, VE, VP, CosineVP, SubVP
from fastdiff.diffusion.coupling import optimal_coupling
from fastdiff.diffusion.discrete import DiscreteVP
from fastdiff.diffusion.flow import FlowMatching, dynamic_shift, resolution_shift, shifted_time
from fastdiff.diffusion.losses import mse_loss, pseudo_huber_loss
from fastdiff.diffusion.mixture import GaussianMixture
from fastdiff.diffusion.predictions import PREDICTIONS, Prediction, get_prediction
from fastdiff.diffusion.processes import PROCESSES, Process, process_from_dict, process_to_dict
from fastdiff.diffusion.times import TIME_SAMPLERS, logit_normal_times, mode_times, uniform_times
from fastdiff.diffusion.vlb import learned_log_variance, prior_bits, vlb_term
from fastdiff.diffusion.weightings import edm_weighting, learned_uncertainty, min_snr, prediction_weight, unweighted

__all__ = [
    "EDM",
    "PREDICTIONS",
    "PROCESSES",
    "TIME_SAMPLERS",
    "VE",
    "VP",
    "CosineVP",
    "DiscreteVP",
    "FlowMatching",
    "GaussianMixture",
    "Prediction",
    "Process",
    "SubVP",
    "consistency_loss",
    "dynamic_shift",
    "edm_weighting",
    "get_prediction",
    "learned_log_variance",
    "learned_uncertainty",
    "logit_normal_times",
    "min_snr",
    "mode_times",
    "mse_loss",
    "optimal_coupling",
    "prediction_weight",
    "prior_bits",
    "process_from_dict",
    "process_to_dict",
    "pseudo_huber_loss",
    "resolution_shift",
    "shifted_time",
    "uniform_times",
    "unweighted",
    "vlb_term",
]
