"""torch.compile of every op: no graph break, the right result, and the op itself in the graph where it is the faster.

Which are the faster was measured; the docstrings of the ops say how.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_calls import KERNELS, OPS, op_call
from torch.utils import _pytree as pytree

from fastdiff import ops

LEFT_TO_INDUCTOR = {"gate_residual"}


def traced(function: Callable, *args: Any, **kwargs: Any) -> tuple[Any, set[str]]:
    """What the compiled function returns, and the ops of this package in its graph."""
    graphs = []

    def backend(module, inputs):
        graphs.append(module.graph)
        return module.forward

    torch._dynamo.reset()
    result = torch.compile(function, fullgraph=True, backend=backend)(*args, **kwargs)
    (graph,) = graphs
    targets = {str(node.target) for node in graph.nodes}
    return result, {target for target in targets if target.startswith("fastdiff.")}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("op", OPS)
def test_graph_holds_the_op_or_its_definition(op, dtype) -> None:
    args, kwargs = op_call(op, dtype)
    got, ours = traced(getattr(ops, op), *args, **kwargs)
    want = getattr(ops, op)(*args, **kwargs)
    for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        # Run without a compiler, as here, a definition rounds after each of its steps.
        torch.testing.assert_close(a, b, **({"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {}))
    assert ours == (set() if op in LEFT_TO_INDUCTOR else {f"fastdiff.{KERNELS[op]}.default"})


@pytest.mark.parametrize("gate_learns", (False, True), ids=("gate_is_given", "gate_learns"))
def test_graph_holds_the_op_where_the_gate_learns(gate_learns) -> None:
    """Its gradient is a sum, in which Inductor is less exact."""
    (x, gate, residual), _ = op_call("gate_residual", torch.float32)
    _, ours = traced(ops.gate_residual, x, gate.requires_grad_(gate_learns), residual)
    assert ours == ({"fastdiff.gate_residual.default"} if gate_learns else set())
