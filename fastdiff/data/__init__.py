"""The checkpoints that come with the package."""

from __future__ import annotations

from pathlib import Path

ICONS = Path(__file__).parent / "icons"
"""A U-Net that draws 16x16 icons, in diffusers' folder format, with its pipeline.json; trained by this package."""
