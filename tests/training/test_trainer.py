from __future__ import annotations

import itertools
import math

import pytest
import safetensors.torch
import torch

from fastdiff.diffusion import PREDICTIONS, PROCESSES, DiscreteVP, get_prediction
from fastdiff.models import UNet2DModel
from fastdiff.sampling import SamplingSettings, sample
from fastdiff.training import TrainConfig, train
from fastdiff.training.data import load_digits, to_model_range
from fastdiff.training.ema import EMA
from fastdiff.training.trainer import learning_rate, make_batch

pytest.importorskip("sklearn")

TINY = {
    "data": "digits",
    "image_size": 8,
    "channels": (16, 16),
    "attention_resolutions": (),
    "head_dim": 8,
    "norm_groups": 4,
    "batch_size": 16,
    "warmup_steps": 5,
    "ema_decay": 0.98,
    "export_dtype": "float32",
}


def test_training_learns_the_data(tmp_path):
    """After a short run the samples have the digits' mean image and brightness; noise has neither."""
    losses = []
    config = TrainConfig(output=str(tmp_path), steps=250, learning_rate=3e-3, **TINY)
    result = train(config, progress=False, on_step=lambda step, loss: losses.append(loss))
    assert result.step == 250 and result.loss == losses[-1] < 0.5 * losses[0]

    model, settings = UNet2DModel.from_pretrained(tmp_path), SamplingSettings.load(tmp_path)
    samples = sample(model, (128, 1, 8, 8), **settings.arguments(steps=12))
    digits = to_model_range(load_digits())
    assert abs(samples.mean() - digits.mean()) < 0.15
    assert abs(samples.std() - digits.std()) < 0.15
    means = torch.stack((samples.mean(0).flatten(), digits.mean(0).flatten()))
    assert torch.corrcoef(means)[0, 1] > 0.9


@pytest.mark.parametrize(
    ("process", "prediction"),
    [
        *itertools.product(["discrete_vp"], PREDICTIONS),
        *itertools.product(["flow_matching"], ["flow", "v", "sample"]),
        ("vp", "score"),
        ("sub_vp", "epsilon"),
        ("cosine_vp", "v"),
        ("ve", "score"),
        ("edm", "edm"),
    ],
)
def test_every_process_and_prediction_trains_and_samples(process, prediction, tmp_path):
    config = TrainConfig(output=str(tmp_path), steps=2, process=process, prediction=prediction, **TINY)
    train(config, progress=False)
    model, settings = UNet2DModel.from_pretrained(tmp_path), SamplingSettings.load(tmp_path)
    assert type(settings.process) is PROCESSES[process] and settings.prediction == prediction
    assert sample(model, (2, 1, 8, 8), **settings.arguments(steps=3)).isfinite().all()


@pytest.mark.parametrize("prediction", ["epsilon", "score", "edm"])
def test_predictions_that_cannot_start_from_pure_noise_are_refused(prediction, tmp_path):
    """There is no signal from which these could tell x0."""
    with pytest.raises(ValueError, match=f"prediction '{prediction}' does not determine x0"):
        TrainConfig(output=str(tmp_path), process="flow_matching", prediction=prediction, **TINY)


def test_every_process_trains_somewhere_here():
    marks = test_every_process_and_prediction_trains_and_samples.pytestmark
    assert {process for process, _ in marks[0].args[1]} == set(PROCESSES)


def test_batch_is_the_noised_images_and_the_target():
    config = TrainConfig(process="discrete_vp", prediction="v", **TINY)
    process, images = DiscreteVP(), torch.full((5, 1, 8, 8), 255, dtype=torch.uint8)
    batch = make_batch(config, images, process, get_prediction("v"), step=3)
    t = batch.timestep.double()
    alpha, sigma = (f(t).float()[:, None, None, None] for f in (process.alpha, process.sigma))
    eps = (batch.noisy - alpha) / sigma  # the images are all ones
    assert abs(eps.mean()) < 0.15 and abs(eps.std() - 1) < 0.15
    torch.testing.assert_close(batch.target, alpha * eps - sigma, rtol=1e-3, atol=1e-3)
    again = make_batch(config, images, process, get_prediction("v"), step=3)
    other = make_batch(config, images, process, get_prediction("v"), step=4)
    assert torch.equal(batch.noisy, again.noisy) and not torch.equal(batch.noisy, other.noisy)


def test_global_random_state_is_left_alone(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    train(TrainConfig(output=str(tmp_path), steps=2, dropout=0.5, **TINY), progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_learning_rate():
    config = TrainConfig(steps=105, learning_rate=2.0, **TINY)
    assert [learning_rate(config, step) for step in (0, 4)] == pytest.approx([0.4, 2.0])
    assert learning_rate(config, 5) == 2.0
    assert learning_rate(config, 55) == pytest.approx(1.0)
    assert 0 < learning_rate(config, 104) < 2.0 * (math.pi / 100) ** 2
    constant = TrainConfig(steps=105, learning_rate=2.0, lr_schedule="constant", **TINY)
    assert learning_rate(constant, 104) == 2.0


def test_ema_is_the_weighted_mean():
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(model.weight, 5.0)
    ema, expected = EMA(model, decay=0.5), 5.0
    for step, value in enumerate((1.0, 2.0, -4.0, 8.0, 0.5, 3.0, 7.0, 6.0, 1.5, 2.5)):
        torch.nn.init.constant_(model.weight, value)
        ema.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert ema.weights["weight"].item() == pytest.approx(expected, rel=1e-14)


def test_finished_model_has_the_averaged_weights(tmp_path):
    train(TrainConfig(output=str(tmp_path), steps=5, **TINY), progress=False)
    finished = safetensors.torch.load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    checkpoint = safetensors.torch.load_file(tmp_path / "checkpoint.safetensors")
    for name, weight in finished.items():
        assert torch.equal(weight, checkpoint[f"ema.{name}"]), name
    assert any(not torch.equal(weight, checkpoint[f"model.{name}"]) for name, weight in finished.items())


def test_progress_bar(tmp_path, capsys):
    train(TrainConfig(output=str(tmp_path), steps=2, **TINY))
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be positive, got -1.0"),
        ({"learning_rate": math.nan}, "learning_rate must be positive, got nan"),
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and below 1"),
        ({"process": "karras"}, "process must be one of.*'karras'"),
        ({"prediction": "epsilon"}, "prediction 'epsilon' does not determine x0"),
        ({"prediction": "noise"}, "prediction must be one of.*'noise'"),
        ({"export_dtype": "int8"}, "export_dtype must be one of.*'int8'"),
        ({"image_size": 9}, "image_size must be a multiple of 2"),
        ({"channels": ()}, "channels must have at least one entry"),
    ],
)
def test_wrong_configuration(change, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**TINY | change)


def test_diverged_loss_stops_the_run(tmp_path):
    config = TrainConfig(output=str(tmp_path), steps=200, **TINY | {"learning_rate": 1e30, "warmup_steps": 0})
    with pytest.raises(FloatingPointError, match="the loss is .* at step .*lower learning_rate"):
        train(config, progress=False)
    assert not (tmp_path / "checkpoint.safetensors").exists()
