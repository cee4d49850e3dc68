"""Makes the package `bench` importable, behind an installed fastdiff."""

import dataclasses
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from bench.models import MODELS  # noqa: E402

SMALL = {
    "sd15_unet": {"block_out_channels": (32, 64, 64, 64), "layers_per_block": 1},
    "dit_xl_2": {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16},
    "sd_vae_decode": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
}


@pytest.fixture
def small(monkeypatch):
    """The models with their own block types and inputs, a hundredth of the size."""
    for name, values in SMALL.items():
        model = MODELS[name]
        monkeypatch.setitem(MODELS, name, dataclasses.replace(model, config={**model.config, **values}))
