"""diffusers' schedulers by solver tables: the same results, with one fused step a model call."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.ops import StepColumn
from fastdiff.sampling import SolverTable
from fastdiff.sampling.scheduler_translation import Translation, check_kind, translate

OPERANDS = {"model_output", "timestep", "sample"}
OPTIONS = {"generator", "eta", "variance_noise", "return_dict"}
"""What :meth:`FusedScheduler.step` has a use for beside its operands."""


def scheduler_for(scheduler: Any) -> FusedScheduler:
    """An object that a diffusers pipeline takes in place of `scheduler`, with the same results.

    ``pipeline.scheduler = scheduler_for(pipeline.scheduler)``: each ``step`` is then one
    :func:`fastdiff.ops.sampler_step`. Noise is drawn from the pipeline's generator as diffusers does. ``step`` returns
    the next sample only (and, for LCM, the denoised one), without an estimate of x0 and without a gradient.

    Where diffusers' own step misses the level that it should lead to, this one does not: DDIM, DDIMInverse and PNDM
    step by T // N even where the spacing is another; IPNDM drops what the first call says of x0; DDPM with
    "fixed_large" ends on noise unless the last call is at t = 0; UniPC with "bh1" ends on NaN.

    Args:
        scheduler: a DDPM, DDIM, DDIMInverse, PNDM (without Runge-Kutta steps), LMSDiscrete, EulerDiscrete,
            EulerAncestralDiscrete, HeunDiscrete, KDPM2Discrete, KDPM2AncestralDiscrete, DPMSolverMultistep,
            DPMSolverSinglestep, DEISMultistep, UniPCMultistep, SASolver, EDMEuler, EDMDPMSolverMultistep,
            FlowMatchEulerDiscrete, FlowMatchHeunDiscrete, LCM, TCD, CMStochasticIterative or IPNDM scheduler.

    Raises:
        ValueError: another scheduler; and later, from set_timesteps or step, a configuration or a keyword that there
            is no table for. PNDM and DPMSolverSinglestep can only begin at their first timestep.
    """
    check_kind(scheduler)
    return FusedScheduler(scheduler)


@dataclass
class StepOutput:
    """What :meth:`FusedScheduler.step` returns."""

    prev_sample: Tensor


class FusedScheduler:
    """What :func:`scheduler_for` returns.

    It has the attributes and methods of the scheduler that it was made from (``config``, ``timesteps``, ``add_noise``,
    ``init_noise_sigma``, ``order``, ...), which go on to that scheduler, but for those of this class.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self._translation: Translation | None = None
        self._input_scales: list[float] | None = None
        self._begin_index: int | None = None
        self._run: _Run | None = None
        signature = inspect.signature(scheduler.step)
        understood = OPTIONS & signature.parameters.keys()

        # Pipelines look at the signatures of these two to see what they may pass.
        @functools.wraps(scheduler.set_timesteps)
        def set_timesteps(*args: Any, **kwargs: Any) -> None:
            scheduler.set_timesteps(*args, **kwargs)
            self._translation = translate(scheduler)
            self._input_scales = self._translation.input_scales
            self._begin_index, self._run = None, None

        @functools.wraps(scheduler.step)
        def step(
            model_output: Tensor, timestep: Any, sample: Tensor, *more: Any, **options: Any
        ) -> StepOutput | tuple[Tensor, ...]:
            if more or not options.keys() <= understood:  # binding takes longer than a small step
                given = signature.bind(model_output, timestep, sample, *more, **options).arguments
                for name in given.keys() - OPTIONS - OPERANDS:
                    if given[name] and given[name] != signature.parameters[name].default:
                        raise ValueError(f"step() has no table for {name}, got {given[name]!r}")
                options = {name: given[name] for name in given.keys() & OPTIONS}
            return self._step(model_output, timestep, sample, **options)

        self.set_timesteps, self.step = set_timesteps, step

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy begins anew: its timesteps must be set."""
        return FusedScheduler, (self.scheduler,)

    def __len__(self) -> int:
        return len(self.scheduler)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """As the scheduler's own: the place in ``timesteps`` at which the next loop starts."""
        self._begin_index = begin_index
        self._run = None

    @property
    def begin_index(self) -> int | None:
        """The place that was set, if one was."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """The place in ``timesteps`` of the next step, once a loop has begun."""
        return None if self._run is None else self._run.first + self._run.done

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """As the scheduler's own, for the step that comes next; the sample itself where there is no scaling."""
        if self._input_scales is None:
            return sample
        running = self._run is not None and not self._run.finished
        index = self.step_index if running else self._first_index(timestep)
        return sample * self._input_scales[index]  # type: ignore[index]

    def _step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        eta: float | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[Tensor, ...]:
        if self._run is None or self._run.finished:
            if self._translation is None:
                raise ValueError("set_timesteps() must be called before step()")
            first = self._first_index(timestep)
            translation = self._translation if eta is None else translate(self.scheduler, eta)
            self._run = _Run(translation, first, sample)
        with torch.no_grad():
            result, model = self._run.step(model_output, sample, generator, variance_noise)
        if return_dict:
            return StepOutput(result)
        denoised = self._run.translation.denoised
        if denoised is None:
            return (result,)
        return result, denoised(timestep, sample, model)

    def _first_index(self, timestep: Any) -> int:
        """The place in the scheduler's timesteps of a loop's first step."""
        if self._begin_index is not None:
            return self._begin_index
        places = (self.scheduler.timesteps == timestep).nonzero().flatten().tolist()
        if not places:
            raise ValueError(f"timestep must be one of the scheduler's timesteps, got {timestep}")
        # Of the two places of a two-stage method's timestep, the second is that of the first stage.
        return places[-1] if places[0] > 0 else places[0]


class _Run:
    """One pass over the timesteps: the table from the first of them on, and what it keeps."""

    def __init__(self, translation: Translation, first: int, sample: Tensor) -> None:
        self.translation = translation
        self.first = first
        self.done = 0
        self.table = table = translation.table(first)
        self.calls = [row for row, called in enumerate(table.calls) if called]
        noise = (table.coefficients[:, StepColumn.NOISE] != 0).tolist()
        self.draws = [
            called and (translation.always_draws or noisy) for called, noisy in zip(table.calls, noise, strict=True)
        ]
        self.noise_slot = table.history_slots
        self.rows = (_noise_from_history(table, self.noise_slot) if any(self.draws) else table.coefficients).float()
        self.rows = self.rows.to(sample.device)
        self.history = [torch.zeros_like(sample) for _ in range(table.history_slots + any(self.draws))]

    @property
    def finished(self) -> bool:
        return self.done == len(self.calls)

    def step(self, model_output: Tensor, sample: Tensor, generator: Any, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """(next sample, model of the last row); rows without a model call go before the next that has one."""
        last = self.calls[self.done]
        for row in range(self.calls[self.done - 1] + 1 if self.done else 0, last + 1):
            if self.draws[row]:
                # The op's own noise is Philox's. The pipeline's comes in by the way that is open to any tensor.
                drawn = _randn(model_output, generator) if noise is None else noise
                self.history[self.noise_slot] = drawn.to(sample.dtype)
            # A new tensor, since the pipeline may keep the old one, and a new model: nothing is copied.
            sample, model = ops.sampler_step(
                sample, model_output, self.rows, row, history=self.history, threshold=self.table.threshold
            )
            if (slot := self.table.writes[row]) is not None:
                self.history[slot] = model
        self.done += 1
        return sample, model


def _noise_from_history(table: SolverTable, slot: int) -> Tensor:
    """The coefficients with the noise's moved to a history slot."""
    if StepColumn.HISTORY_0 + slot > StepColumn.HISTORY_3:
        raise ValueError("the sampler keeps as many models as there is room for, so there is none for the noise")
    rows = table.coefficients.clone()
    rows[:, StepColumn.HISTORY_0 + slot] = rows[:, StepColumn.NOISE]
    rows[:, StepColumn.NOISE] = 0
    return rows


def _randn(like: Tensor, generator: Any) -> Tensor:
    from diffusers.utils.torch_utils import randn_tensor

    return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)
