"""The preconditionings against the rows of EDM's table 1, and sampling from them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

import fastdiff
from fastdiff.diffusion import EDM, VE, learned_uncertainty
from fastdiff.models import DhariwalUNet, EDM2Precond, EDMPrecond, IDDPMPrecond, SongUNet, VEPrecond, VPPrecond
from fastdiff.sampling import sample

SMALL = {
    "img_resolution": 8,
    "img_channels": 3,
    "model_channels": 16,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (),
}
SONG = SMALL | {"model_type": "SongUNet"}
PRECONDS = [VPPrecond, VEPrecond, IDDPMPrecond, EDMPrecond, EDM2Precond]
LEVELS = [0.01, 0.3, 1.0, 20.0]


def made(kind: type, **changes) -> nn.Module:
    torch.manual_seed(0)
    config = SMALL | {"channels_per_head": 16} if kind is EDM2Precond else SONG
    model = kind(**(config | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def pictures(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def table_1(model: nn.Module, sigma: float) -> tuple[float, float, float, float]:
    """c_skip, c_out, c_in and c_noise, row by row as the paper has them."""
    config = model.config
    if isinstance(model, VPPrecond):
        root = math.sqrt(config.beta_min**2 + 2 * config.beta_d * math.log(1 + sigma**2))
        time = (root - config.beta_min) / config.beta_d
        return 1, -sigma, 1 / math.sqrt(sigma**2 + 1), (config.M - 1) * time
    if isinstance(model, VEPrecond):
        return 1, sigma, 1, math.log(sigma / 2)
    if isinstance(model, IDDPMPrecond):
        step = min(range(config.M + 1), key=lambda j: abs(model.u[j].item() - sigma))
        return 1, -sigma, 1 / math.sqrt(sigma**2 + 1), config.M - 1 - step
    total = sigma**2 + config.sigma_data**2
    return (
        config.sigma_data**2 / total,
        sigma * config.sigma_data / math.sqrt(total),
        1 / math.sqrt(total),
        math.log(sigma) / 4,
    )


@pytest.mark.parametrize("kind", PRECONDS)
def test_coefficients_are_table_1(kind: type) -> None:
    model = made(kind)
    actual = model.coefficients(torch.tensor(LEVELS, dtype=torch.float64))
    for index, sigma in enumerate(LEVELS):
        assert [c[index].item() for c in actual] == pytest.approx(table_1(model, sigma), rel=1e-9)


@pytest.mark.parametrize("kind", PRECONDS)
def test_denoiser_is_the_equation(kind: type) -> None:
    model, x = made(kind), pictures()
    actual = model(x, torch.tensor(LEVELS))
    for index, sigma in enumerate(LEVELS):
        c_skip, c_out, c_in, c_noise = table_1(model, sigma)
        row = x[index : index + 1]
        expected = c_skip * row + c_out * model.network(c_in * row, c_noise)[:, :3]
        torch.testing.assert_close(actual[index : index + 1], expected, rtol=1e-4, atol=1e-4 * sigma)


@pytest.mark.parametrize("kind", [EDMPrecond, EDM2Precond])
def test_limits_of_the_noise_level(kind: type) -> None:
    """No noise: the picture is its own estimate. All noise: nothing of it is kept, and D is the network's alone."""
    model, x = made(kind), pictures()
    torch.testing.assert_close(model(x, 1e-7), x, rtol=0, atol=1e-5)
    far = model.coefficients(torch.tensor([1e6], dtype=torch.float64))
    assert far.c_skip < 1e-12 and far.c_out.item() == pytest.approx(model.config.sigma_data)
    for levels in (LEVELS, [1e-3, 1e3]):
        # Variances of what the network gets and of what it is to say, for data of the deviation sigma_data.
        sigma, data = torch.tensor(levels, dtype=torch.float64), model.config.sigma_data
        c_skip, c_out, c_in, _ = model.coefficients(sigma)
        torch.testing.assert_close(c_in**2 * (data**2 + sigma**2), torch.ones_like(sigma))
        target = ((1 - c_skip) ** 2 * data**2 + c_skip**2 * sigma**2) / c_out**2
        torch.testing.assert_close(target, torch.ones_like(sigma))


@pytest.mark.parametrize("kind", [VPPrecond, VEPrecond, IDDPMPrecond])
def test_older_preconditionings_keep_the_picture_without_noise(kind: type) -> None:
    model, x = made(kind), pictures()
    torch.testing.assert_close(model(x, 1e-7), x, rtol=0, atol=1e-5)


def test_levels_of_vp_and_iddpm() -> None:
    """Noise levels that the papers give: of t = 1e-5 and 1 of VP, and of the cosine schedule in EDM's appendix C."""
    vp, iddpm = made(VPPrecond), made(IDDPMPrecond)
    assert (vp.sigma_min, vp.sigma_max) == pytest.approx((1.0005e-3, 152.167), rel=1e-4)
    times = vp.coefficients(torch.tensor([vp.sigma_min, vp.sigma_max], dtype=torch.float64)).c_noise
    torch.testing.assert_close(times, torch.tensor([999e-5, 999.0], dtype=torch.float64))

    assert len(iddpm.u) == 1001 and iddpm.u[1000] == 0 and (iddpm.u.diff() < 0).all()
    for step in (200, 700, 999):
        alpha_bar = math.sin(0.5 * math.pi * step / (1000 * 1.008)) ** 2
        # Beyond the levels where C_1 bounds the ratio of neighbours, u is the ratio of noise and signal.
        signal = alpha_bar / math.sin(0.5 * math.pi / 1.008) ** 2
        assert iddpm.u[step].item() == pytest.approx(math.sqrt(1 / signal - 1), rel=1e-5)
    assert (iddpm.sigma_min, iddpm.sigma_max) == pytest.approx((6.4254e-3, 20291.2), rel=1e-4)
    rounded = iddpm.round_sigma(torch.tensor([[0.0064], [1e9]], dtype=torch.float64))
    assert rounded.tolist() == [[iddpm.u[999].item()], [iddpm.u[0].item()]]


@pytest.mark.parametrize("kind", PRECONDS)
def test_noise_level_as_number_scalar_vector_and_map(kind: type) -> None:
    model, x = made(kind), pictures(2)
    expected = model(x, torch.tensor([0.7, 0.7]))
    for sigma in (0.7, torch.tensor(0.7), torch.full((2, 1, 1, 1), 0.7)):
        torch.testing.assert_close(model(x, sigma), expected, rtol=1e-6, atol=1e-6)


def test_half_precision_is_asked_for_by_the_configuration() -> None:
    """Not of a CPU; the meta device stands for another."""
    ran_in = []

    def network(x: Tensor, *_: Tensor, **__: Tensor) -> Tensor:
        ran_in.append(x.dtype)
        return x

    for device, *settings in (
        ("meta", True, False),
        ("meta", True, True),
        ("meta", False, False),
        ("cpu", True, False),
    ):
        model = made(EDM2Precond, use_fp16=settings[0]).to(device)
        model.unet.forward = network
        denoised = model(pictures().to(device), torch.ones(4, device=device), force_fp32=settings[1])
        assert denoised.dtype == torch.float32
    assert ran_in == [torch.float16, torch.float32, torch.float32, torch.float32]


@pytest.mark.parametrize("kind", PRECONDS)
def test_autocast(kind: type) -> None:
    model, x, sigma = made(kind), pictures(), torch.tensor(LEVELS)
    expected = model(x, sigma)
    with torch.autocast("cpu", torch.bfloat16):
        actual = model(x, sigma)
    actual.sum().backward()
    assert actual.dtype == torch.float32
    assert (actual - expected).abs().max() < 0.05 * expected.abs().max()
    assert not torch.equal(actual, expected)


@pytest.mark.parametrize("kind", PRECONDS)
def test_narrow_model_keeps_the_noise_level(kind: type) -> None:
    """Also in what the network is told of it; c_out would differ in any case."""
    model = made(kind).bfloat16()
    x = pictures(1).bfloat16()
    seen = []
    model.network.register_forward_pre_hook(lambda _, given: seen.append(given[1].item()))
    # bfloat16 would make 1.305 of both. They are neighbours among the levels of IDDPM.
    for sigma in (1.303, 1.307):
        assert model(x, sigma).dtype == torch.float32
        assert seen.pop() == pytest.approx(table_1(model, sigma)[3], rel=1e-5)


def test_levels_of_iddpm_keep_their_digits(tmp_path) -> None:
    model = made(IDDPMPrecond)
    levels = model.u.clone()
    model.bfloat16().save_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(IDDPMPrecond.from_pretrained(tmp_path, dtype=torch.bfloat16).u, levels)


@pytest.mark.parametrize("kind", PRECONDS)
def test_folder_round_trip(kind: type, tmp_path) -> None:
    model, x = made(kind), pictures(2)
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert loaded.config == model.config and kind.from_config(model.config).config == model.config
    assert torch.equal(loaded(x, 0.5), model(x, 0.5))
    assert "NaN" not in (tmp_path / "config.json").read_text() and "Inf" not in (tmp_path / "config.json").read_text()


def test_folder_with_the_arguments_of_nvlabs_constructor(tmp_path) -> None:
    """Weights, and all keys beside each other."""
    model = made(EDM2Precond)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"channels_per_head": 16}))
    assert torch.equal(EDM2Precond.from_pretrained(tmp_path)(pictures(), 0.5), model(pictures(), 0.5))


def test_networks_keys_stand_beside_or_in_model_kwargs() -> None:
    beside = made(EDMPrecond, sigma_max=float("inf")).config
    own = {key: SONG[key] for key in ("img_resolution", "img_channels", "model_type")}
    network = {key: value for key, value in SONG.items() if key not in own}
    assert EDMPrecond(**own, model_kwargs=network).config == beside
    assert beside.model_kwargs["num_blocks"] == 1 and "in_channels" not in beside.model_kwargs


def test_wrapped_network() -> None:
    assert isinstance(made(VPPrecond).model, SongUNet)
    adm = SMALL | {"model_channels": 64}
    assert isinstance(EDMPrecond(**adm).model, DhariwalUNet)
    assert IDDPMPrecond(**adm).model.config.out_channels == 6
    keys = {key.split(".")[0] for key in made(EDM2Precond).state_dict()}
    assert keys == {"unet", "logvar_fourier", "logvar_linear"}
    assert {key.split(".")[0] for key in made(IDDPMPrecond).state_dict()} == {"model", "u"}


def test_labels_reach_the_network() -> None:
    model, x = made(EDMPrecond, label_dim=4, augment_dim=9), pictures(2)
    plain = model(x, 1.0)
    labels = torch.eye(4)[:2]
    c_skip, c_out, c_in, c_noise = table_1(model, 1.0)
    expected = c_skip * x + c_out * model.model(c_in * x, c_noise, labels, torch.ones(2, 9))
    torch.testing.assert_close(model(x, 1.0, labels, augment_labels=torch.ones(2, 9)), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(x, 1.0, torch.zeros(2, 4)), plain)


def test_gradient_checkpointing_reaches_the_network() -> None:
    model = made(EDM2Precond)
    model.enable_gradient_checkpointing()
    assert model.unet.gradient_checkpointing
    model.disable_gradient_checkpointing()
    assert not model.unet.gradient_checkpointing


def test_uncertainty_of_a_noise_level() -> None:
    """By its formula, of the level alone, in the shape that the loss takes."""
    model, x, sigma = made(EDM2Precond), pictures(3), torch.tensor([0.5, 0.5, 4.0])
    denoised, logvar = model(x, sigma, return_logvar=True)
    assert torch.equal(denoised, model(x, sigma))
    angle = 0.25 * math.log(4.0) * model.logvar_fourier.freqs + model.logvar_fourier.phases
    weight = model.logvar_linear.weight[0]
    # sqrt(2) cos(...) times a weight of the length 1.
    expected = math.sqrt(2) * angle.cos() @ weight / weight.norm()
    torch.testing.assert_close(logvar[2], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(logvar[0], logvar[1])
    (slope,) = torch.autograd.grad(learned_uncertainty(torch.full((3,), 3.0), logvar).sum(), logvar)
    torch.testing.assert_close(slope, 1 - 3.0 * torch.exp(-logvar.detach()))


@pytest.mark.parametrize("kind", [EDMPrecond, EDM2Precond])
def test_samplers_take_the_denoiser_and_the_bare_network(kind: type) -> None:
    """One flow in two forms: D on x0 + sigma * noise, and F on what c_in makes of it."""
    model = made(kind)
    options = {"sampler": "edm", "steps": 5, "schedule": "karras", "seeds": [3, 4]}
    denoised = sample(model, (2, 3, 8, 8), process=VE(0.002, 80.0), prediction="sample", **options)
    bare = sample(model.network, (2, 3, 8, 8), process=EDM(), prediction="edm", **options)
    assert 0.05 < denoised.std() < 50
    torch.testing.assert_close(denoised, bare, rtol=1e-3, atol=1e-3 * denoised.std().item())


def test_sampling_is_algorithm_1() -> None:
    model = made(EDMPrecond).double()
    noise = pictures(2).double()
    steps = torch.arange(5, dtype=torch.float64)
    levels = [*(80 ** (1 / 7) + steps / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))).pow(7).tolist(), 0.0]
    with fastdiff.use_reference(), torch.no_grad():
        x = levels[0] * noise
        for here, there in zip(levels[:-1], levels[1:], strict=True):
            slope = (x - model(x, here)) / here
            ahead = x + (there - here) * slope
            if there > 0:
                slope = (slope + (ahead - model(ahead, there)) / there) / 2
                ahead = x + (there - here) * slope
            x = ahead
        actual = sample(
            model, noise, sampler="edm", steps=5, schedule="karras", process=VE(0.002, 80.0), prediction="sample"
        )
    torch.testing.assert_close(actual, x, rtol=1e-5, atol=1e-5)


def test_compiles_without_a_break() -> None:
    torch._dynamo.reset()
    model, x, sigma = made(IDDPMPrecond, channel_mult=(1,)), pictures(2), torch.tensor([0.5, 3.0])
    actual = torch.compile(model, fullgraph=True, backend="aot_eager")(x, sigma)
    torch.testing.assert_close(actual, model(x, sigma), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "UNet"}, "model_type must be one of.*'UNet'"),
        ({"model_kwargs": {"in_channels": 3}}, "in_channels must not be in model_kwargs"),
        ({"hidden_size": 5}, "SongUNet has no configuration key 'hidden_size'"),
        ({"model_kwargs": None}, "model_kwargs must map keys to values, got None"),
        ({"img_channels": 0}, "img_channels must be an integer of at least 1"),
        ({"sigma_data": 0}, "sigma_data must be a number above 0, got 0"),
    ],
)
def test_unsupported_configuration(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EDMPrecond(**(SONG | change))


@pytest.mark.parametrize(("key", "least"), [("sigma_data", "a number above 0"), ("logvar_channels", "an integer")])
def test_unsupported_configuration_of_edm2(key: str, least: str) -> None:
    with pytest.raises(ValueError, match=f"{key} must be {least}"):
        EDM2Precond(**(SMALL | {key: 0}))


@pytest.mark.parametrize("kind", PRECONDS)
def test_noise_level_must_be_positive(kind: type) -> None:
    model, x = made(kind), pictures(2)
    for sigma in (0.0, -1.0, math.nan, torch.tensor([1.0, 0.0])):
        with pytest.raises(ValueError, match="sigma must be positive"):
            model(x, sigma)


def test_wrong_inputs() -> None:
    model, x = made(EDMPrecond), pictures(2)
    with pytest.raises(ValueError, match=r"x must be \(N, 3, H, W\)"):
        model(x[0], 1.0)
    with pytest.raises(ValueError, match=r"x must be \(N, 3, H, W\)"):
        model(x[:, :2], 1.0)
    with pytest.raises(ValueError, match="sigma must be a number or a tensor"):
        model(x, torch.ones(3))
    with pytest.raises(ValueError, match="class_labels must not be given"):
        model(x, 1.0, torch.zeros(2, 4))
