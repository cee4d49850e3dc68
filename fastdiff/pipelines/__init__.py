"""Latent pipelines: from a prompt, or a class, to images."""

from fastdiff.pipelines.latent_diffusion import LatentDiffusionPipeline, PipelineOutput
from fastdiff.pipelines.scheduler_config import SchedulerConfig

__all__ = ["LatentDiffusionPipeline", "PipelineOutput", "SchedulerConfig"]
