"""torch.export of every op: the program holds the op itself, and runs to the same bits."""

from __future__ import annotations

import pytest
import torch
from op_calls import KERNELS, OPS, op_call
from torch.utils import _pytree as pytree

from fastdiff import ops


class Module(torch.nn.Module):
    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op

    def forward(self, *args, **kwargs):
        return getattr(ops, self.op)(*args, **kwargs)


@pytest.mark.parametrize("strict", (False, True), ids=("non_strict", "strict"))
@pytest.mark.parametrize("op", OPS)
def test_exported_program_runs_equal(op, strict) -> None:
    calls = [op_call(op), op_call(op)]
    args, kwargs = calls[0]
    program = torch.export.export(Module(op), args, kwargs, strict=strict)
    assert f"fastdiff.{KERNELS[op]}.default" in map(str, (node.target for node in program.graph.nodes))
    for args, kwargs in calls:
        got, want = program.module()(*args, **kwargs), getattr(ops, op)(*args, **kwargs)
        assert all(map(torch.equal, pytree.tree_leaves(got), pytree.tree_leaves(want)))
