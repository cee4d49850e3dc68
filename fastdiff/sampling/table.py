"""A solver as a table: everything that is known before the loop starts, in float64."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.ops import StepColumn
from fastdiff.sampling.schedule import Level


@dataclass(frozen=True)
class SolverTable:
    """A solver for one schedule and prediction: one row for each :func:`fastdiff.ops.sampler_step`.

    Row i calls the network on the state at ``levels[i]``, if ``calls[i]``, and leads to the state at ``levels[i + 1]``.
    """

    levels: tuple[Level, ...]
    """rows + 1 levels: of the state before each row, and of the sample."""
    coefficients: Tensor
    """(rows, 13) float64: see :func:`fastdiff.ops.sampler_step`."""
    calls: tuple[bool, ...]
    """Whether the row calls the network; one that does not reuses the last prediction, or has no use for one."""
    writes: tuple[int | None, ...]
    """The history slot that receives the row's model, if any."""
    start_scale: float
    """The deviation of the noise to start from."""
    threshold: tuple[float, float] | None = None
    """(ratio, max_value) of the dynamic threshold, in place of a clip."""

    def __len__(self) -> int:
        return len(self.calls)

    @property
    def timesteps(self) -> Tensor:
        """(rows,) float64: what the network is told at each row."""
        return torch.tensor([level.timestep for level in self.levels[:-1]], dtype=torch.float64)

    @property
    def model_calls(self) -> int:
        return sum(self.calls)

    @property
    def history_slots(self) -> int:
        return 1 + max((slot for slot in self.writes if slot is not None), default=-1)

    @property
    def draws(self) -> list[bool]:
        """Whether each row draws noise."""
        return (self.coefficients[:, StepColumn.NOISE] != 0).tolist()

    @property
    def is_stochastic(self) -> bool:
        """Whether any row draws noise."""
        return any(self.draws)

    @property
    def history_reads(self) -> list[int]:
        """How many history slots each row reads, from the first on."""
        used = self.coefficients[:, StepColumn.HISTORY_0 :] != 0
        return [1 + max((slot for slot, is_used in enumerate(row) if is_used), default=-1) for row in used.tolist()]

    def in_units(self, scales: Tensor) -> SolverTable:
        """The same solver for the state ``scales[i] * x``, with (rows + 1,) scales; models and predictions stay."""
        before, after = scales[:-1], scales[1:]
        coefficients = self.coefficients.clone()
        coefficients[:, StepColumn.MODEL_SAMPLE] /= before
        coefficients[:, StepColumn.SAMPLE :] *= after[:, None]
        coefficients[:, StepColumn.SAMPLE] /= before
        return dataclasses.replace(self, coefficients=coefficients, start_scale=self.start_scale * scales[0].item())

    def with_guidance(self, scales: Tensor, rescale: float = 0.0) -> SolverTable:
        """The same solver with a guidance scale for each row, (rows,), and the rescaling of arXiv:2305.08891."""
        coefficients = self.coefficients.clone()
        coefficients[:, StepColumn.GUIDANCE] = scales
        coefficients[:, StepColumn.RESCALE] = rescale
        return dataclasses.replace(self, coefficients=coefficients)
