"""Put the fused kernel into a network of your own, with the weights that it already has.

    python examples/drop_in.py

`norm(x + time)` followed by `silu` is what nearly every diffusion U-Net does twice a block. GroupNormSiLU does it in
one pass over memory; it has torch.nn.GroupNorm's parameters, so a trained state_dict loads as it is.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdiff

CHANNELS, GROUPS, TIME_CHANNELS = 64, 8, 128
ROUNDS = 10


class Block(nn.Module):
    """A residual block as it is usually written."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, CHANNELS)
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.time_projection = nn.Linear(TIME_CHANNELS, CHANNELS)
        self.norm2 = nn.GroupNorm(GROUPS, CHANNELS)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor, time_embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_projection(F.silu(time_embedding))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return x + h


class FusedBlock(Block):
    """The same block: two lines of __init__ and three of forward are new."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = fastdiff.nn.GroupNormSiLU(GROUPS, CHANNELS)
        self.norm2 = fastdiff.nn.GroupNormSiLU(GROUPS, CHANNELS)

    def forward(self, x: Tensor, time_embedding: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        time_bias = self.time_projection(F.silu(time_embedding))
        h = self.conv2(self.norm2(h, time_bias=time_bias))
        return x + h


class Network(nn.Module):
    """A few blocks, of either kind."""

    def __init__(self, block: type[Block], blocks: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(blocks))

    def forward(self, x: Tensor, time_embedding: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, time_embedding)
        return x


def seconds(network: nn.Module, *inputs: Tensor) -> float:
    start = time.perf_counter()
    network(*inputs)
    return time.perf_counter() - start


@torch.no_grad()
def main() -> float:
    """Compare the two networks; returns their largest difference."""
    torch.manual_seed(0)
    fastdiff.tune_allocator()
    yours, fused = Network(Block), Network(FusedBlock)
    for block in yours.blocks:  # a trained network's norms are not at their initial ones and zeros
        for norm in (block.norm1, block.norm2):
            nn.init.normal_(norm.weight, 1.0, 0.2)
            nn.init.normal_(norm.bias, 0.0, 0.2)
    fused.load_state_dict(yours.state_dict())

    x, time_embedding = torch.randn(2, CHANNELS, 64, 64), torch.randn(2, TIME_CHANNELS)
    difference = (yours(x, time_embedding) - fused(x, time_embedding)).abs().max().item()  # also warms both up
    print(f"largest difference  {difference:.1e}")

    times = [(seconds(yours, x, time_embedding), seconds(fused, x, time_embedding)) for _ in range(ROUNDS)]
    before, after = (1e3 * min(column) for column in zip(*times, strict=True))
    print(f"PyTorch             {before:.1f} ms")
    print(f"fastdiff            {after:.1f} ms, {before / after:.2f}x (convolutions included)")
    return difference


if __name__ == "__main__":
    main()
