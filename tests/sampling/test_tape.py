"""From formulas to rows: what is kept, for how long, and what cannot be."""

from __future__ import annotations

import math

import pytest
import torch

from fastdiff import ops
from fastdiff.diffusion import DiscreteVP
from fastdiff.ops import StepColumn
from fastdiff.sampling import SAMPLERS, Level, NoiseSchedule, run_table, schedule_of_times, solver_table
from fastdiff.sampling.tape import Tape, Vector

PROCESS = DiscreteVP()
SCHEDULE = schedule_of_times(PROCESS, torch.tensor([900.0, 700.0, 500.0, 300.0, 100.0], dtype=torch.float64))


def test_vectors_add_up():
    x, y = Vector({("sample", 0): 1.0}), Vector({("model", 0): 2.0})
    assert (2.0 * x - y / 4 + y).terms == {("sample", 0): 2.0, ("model", 0): 1.5}
    assert (0.0 * x).terms == {}


def test_a_row_is_ddim_by_hand():
    here, there = SCHEDULE.levels[:2]
    row = solver_table("ddim", PROCESS, "epsilon", 5, schedule=SCHEDULE).coefficients[0]
    expected = {
        StepColumn.GUIDANCE: 1.0,
        StepColumn.CLIP: math.inf,
        StepColumn.MODEL_GUIDED: 1.0,
        StepColumn.SAMPLE: there.alpha / here.alpha,
        StepColumn.MODEL: there.sigma - there.alpha / here.alpha * here.sigma,
    }
    for column in StepColumn:
        assert math.isclose(row[column], expected.get(column, 0.0), rel_tol=1e-12, abs_tol=1e-15), column


def test_earlier_samples_are_rewritten():
    """Heun's x + h/2 (d + d') in terms of the sample x + h d that the network saw last."""
    tape = Tape("epsilon")
    first = tape.evaluate(tape.start, SCHEDULE.levels[0])
    second = tape.evaluate(first.sample + 0.5 * first.model, SCHEDULE.levels[1])
    table = tape.finish(first.sample + 0.25 * (first.model + second.model), SCHEDULE)
    row = table.coefficients[1]
    assert row[StepColumn.SAMPLE] == 1 and row[StepColumn.MODEL] == 0.25 and row[StepColumn.HISTORY_0] == -0.25
    assert table.writes == (0, None) and table.history_slots == 1


def test_slots_are_shared_in_time():
    """Each model is needed for the next three calls: three slots for any number of steps."""
    table = solver_table("lms", PROCESS, "epsilon", 50)
    assert table.history_slots == 3
    assert table.writes[:7] == (0, 1, 2, 0, 1, 2, 0)


def test_tables_are_kept():
    """A table is the work of milliseconds, and the same for every run."""
    options = {"threshold": [0.9, 2.0], "spacing": "leading"}
    first = solver_table("ddim", PROCESS, "v", 9, **options)
    assert solver_table("ddim", DiscreteVP(), "v", 9, **options) is first
    assert solver_table("ddim", DiscreteVP("cosine"), "v", 9, **options) is not first
    assert solver_table("ddim", PROCESS, "v", 9, threshold=[0.9, 2.5], spacing="leading").threshold == (0.9, 2.5)


def test_what_is_gone_is_missed():
    tape = Tape("epsilon")
    first = tape.evaluate(tape.start, SCHEDULE.levels[0])
    tape.evaluate(first.model, SCHEDULE.levels[1])  # the next state has nothing of the sample
    with pytest.raises(RuntimeError, match="has no use for the sample of row 0"):
        tape.finish(first.sample, SCHEDULE)

    tape = Tape("epsilon")
    first = tape.evaluate(tape.start, SCHEDULE.levels[0])
    noise = tape.noise()
    tape.evaluate(first.sample + noise, SCHEDULE.levels[1])
    with pytest.raises(RuntimeError, match="row 1 needs the noise of row 0"):
        tape.finish(first.sample + first.model, SCHEDULE)

    tape, models = Tape("epsilon"), []
    x = tape.start
    for level in SCHEDULE.levels[:5]:
        said = tape.evaluate(x, level)
        models.append(said.model)
        x = said.sample + said.model
    x = tape.evaluate(x, SCHEDULE.levels[0]).sample
    with pytest.raises(RuntimeError, match="keeps more than 4 models"):
        tape.finish(sum(models, x), SCHEDULE)


def test_clip_bounds_x0_and_leaves_the_noise():
    """DDIM takes the network's own noise with the clipped x0; DDPM and Heun what goes with it."""
    x, output = torch.randn(2, 1, 500, generator=torch.Generator().manual_seed(0))
    here, there = SCHEDULE.levels[3:5]
    schedule = NoiseSchedule(PROCESS, (here, there), 1.0)
    x0 = ((x - here.sigma * output) / here.alpha).clamp(-0.5, 0.5)
    results = {}
    for sampler in ("ddim", "heun"):
        table = solver_table(sampler, PROCESS, "epsilon", 1, schedule=schedule, clip=0.5)
        row = table.coefficients[:1].float()
        results[sampler] = ops.sampler_step(x, output, row)[0]
    torch.testing.assert_close(results["ddim"], there.alpha * x0 + there.sigma * output)
    noise = (x - here.alpha * x0) / here.sigma
    torch.testing.assert_close(results["heun"], there.alpha * x0 + there.sigma * noise, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="clip must be positive, got 0"):
        Tape("epsilon", clip=0)


def test_units_of_the_state_do_not_matter():
    table = solver_table("dpmpp_2m_sde", PROCESS, "epsilon", 12)
    scales = torch.tensor([1 / level.alpha for level in table.levels], dtype=torch.float64)
    scaled = table.in_units(scales)
    start = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    outputs = torch.randn(12, 2, 8, generator=torch.Generator().manual_seed(1))
    results = []
    for one in (table, scaled):
        calls = iter(outputs)
        results.append(
            run_table(
                one,
                lambda x, t, calls=calls: next(calls),
                start * one.start_scale,
                prediction="epsilon",
                seeds=torch.arange(2),
            )
        )
    torch.testing.assert_close(results[1], results[0] * scales[-1].float(), rtol=1e-4, atol=1e-4)
    assert math.isclose(scaled.start_scale, table.start_scale * scales[0])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_table_amplifies(sampler):
    """float32 coefficients of very different sizes would cancel in the step."""
    from fastdiff.diffusion import EDM, FlowMatching

    kinds = SAMPLERS[sampler].processes
    process, prediction = (PROCESS, "v") if not kinds or DiscreteVP in kinds else (EDM(), "edm")
    if kinds == (FlowMatching,):
        process, prediction = FlowMatching(), "flow"
    options = {"final": "sigma_min"} if sampler.startswith("dpm_solver") else {}
    table = solver_table(sampler, process, prediction, 30, **options)
    factors = table.coefficients[:, StepColumn.SAMPLE :]
    assert factors.isfinite().all() and factors.abs().max() < 60, factors.abs().max()


def test_levels():
    assert Level(0.0, 1.0, 999).ratio == math.inf and Level(0.0, 1.0, 999).log_ratio == -math.inf
    assert Level(1.0, 0.0, 0).ratio == 0 and Level(1.0, 0.0, 0).log_ratio == math.inf
