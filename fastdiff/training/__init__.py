"""Training: from a folder of images to a checkpoint that samples, on one device."""

from fastdiff.training.config import TrainConfig
from fastdiff.training.trainer import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "train"]
