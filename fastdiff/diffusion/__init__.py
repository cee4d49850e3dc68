"""The mathematics of diffusion, in float64 on the host: processes, predictions, times and losses.

Everything here follows from ``x_t = alpha(t) * x0 + sigma(t) * eps``. A :mod:`process <fastdiff.diffusion.processes>`
says what alpha and sigma are, a :mod:`prediction <fastdiff.diffusion.predictions>` says which combination of x0 and
eps the network returns.
"""

from fastdiff.diffusion.losses import mse_loss
from fastdiff.diffusion.predictions import PREDICTIONS, Prediction, get_prediction
from fastdiff.diffusion.processes import (
    PROCESSES,
    DiscreteVP,
    FlowMatching,
    Process,
    process_from_dict,
    process_to_dict,
)
from fastdiff.diffusion.times import TIME_SAMPLERS, logit_normal_times, uniform_times

__all__ = [
    "PREDICTIONS",
    "PROCESSES",
    "TIME_SAMPLERS",
    "DiscreteVP",
    "FlowMatching",
    "Prediction",
    "Process",
    "get_prediction",
    "logit_normal_times",
    "mse_loss",
    "process_from_dict",
    "process_to_dict",
    "uniform_times",
]
