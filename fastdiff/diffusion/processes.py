"""Forward processes: ``x_t = alpha(t) * x0 + sigma(t) * eps`` with eps standard normal."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from torch import Tensor

from fastdiff.diffusion.continuous import EDM, VE, VP, CosineVP, SubVP
from fastdiff.diffusion.discrete import DiscreteVP
from fastdiff.diffusion.flow import FlowMatching


class Process(Protocol):
    """What the samplers and the training loop ask of a process. All tensors are float64 on the host.

    The state x_t is what the network is given: there is no further scaling of its input.
    """

    def __hash__(self) -> int:
        """Processes are values: solver tables are kept by them."""
        ...

    @property
    def first_time(self) -> float:
        """The noisiest time, at which sampling starts."""
        ...

    @property
    def last_time(self) -> float:
        """The least noisy time that a network is trained on."""
        ...

    def alpha(self, t: Tensor) -> Tensor:
        """Signal coefficient at the times `t`."""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """Noise coefficient at the times `t`."""
        ...

    def time_at(self, ratio: Tensor) -> Tensor:
        """The time at which sigma / alpha is `ratio`: the noise level of EDM and k-diffusion."""
        ...

    def data_scale(self, t: Tensor) -> Tensor:
        """What a state at time `t` is multiplied by to be in units of data: 1 but for :class:`EDM`."""
        ...

    def start_scale(self, t: Tensor) -> Tensor:
        """The deviation of the noise that sampling from time `t` starts with."""
        ...

    def time_from_unit(self, u: Tensor) -> Tensor:
        """The time at the quantile u in [0, 1) of the process's own distribution of training times."""
        ...

    def timestep(self, t: Tensor) -> Tensor:
        """What the network is told at time `t`."""
        ...

    def time_of_timestep(self, timestep: Tensor) -> Tensor:
        """The inverse of :meth:`timestep`."""
        ...


PROCESSES: dict[str, type] = {
    "discrete_vp": DiscreteVP,
    "flow_matching": FlowMatching,
    "vp": VP,
    "sub_vp": SubVP,
    "cosine_vp": CosineVP,
    "ve": VE,
    "edm": EDM,
}


def process_to_dict(process: Process) -> dict[str, Any]:
    """The process as JSON-able values: its name in :data:`PROCESSES` and its fields."""
    (name,) = (name for name, kind in PROCESSES.items() if type(process) is kind)
    return {"name": name, **dataclasses.asdict(process)}  # type: ignore[call-overload]


def process_from_dict(values: dict[str, Any]) -> Process:
    """The inverse of :func:`process_to_dict`. Raises ValueError for an unknown name or field."""
    fields = dict(values)
    name = fields.pop("name", None)
    if name not in PROCESSES:
        raise ValueError(f"process must have a name out of {sorted(PROCESSES)}, got {name!r}")
    known = [field.name for field in dataclasses.fields(PROCESSES[name])]
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ValueError(f"process {name!r} has no field {unknown[0]!r}; it has {known}")
    return PROCESSES[name](**fields)
