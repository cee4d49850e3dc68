"""torch.compile of every op: no graph break, the right result, and the op itself in the graph where it is the faster.

Which are the faster was measured; the docstrings of the ops say how.
"""

from __future__ import annotations

import pytest
import torch
from op_calls import KERNELS, OPS, op_call
from torch.utils import _pytree as pytree

from fastdiff import ops

LEFT_TO_INDUCTOR = {"gate_residual"}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("op", OPS)
def test_graph_holds_the_op_or_its_definition(op, dtype) -> None:
    graphs = []

    def backend(module, inputs):
        graphs.append(module.graph)
        return module.forward

    torch._dynamo.reset()
    args, kwargs = op_call(op, dtype)
    compiled = torch.compile(getattr(ops, op), fullgraph=True, backend=backend)
    got, want = compiled(*args, **kwargs), getattr(ops, op)(*args, **kwargs)
    for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        # Run without a compiler, as here, a definition rounds after each of its steps.
        torch.testing.assert_close(a, b, **({"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {}))
    (graph,) = graphs
    ours = {str(node.target) for node in graph.nodes if str(node.target).startswith("fastdiff.")}
    assert ours == (set() if op in LEFT_TO_INDUCTOR else {f"fastdiff.{KERNELS[op]}.default"})


@pytest.mark.parametrize("gate_learns", (False, True), ids=("gate_is_given", "gate_learns"))
def test_graph_holds_the_op_where_the_gate_learns(gate_learns) -> None:
    """Its gradient is a sum, in which Inductor is less exact."""
    graphs = []

    def backend(module, inputs):
        graphs.append(module.graph)
        return module.forward

    torch._dynamo.reset()
    x, gate, residual = op_call("gate_residual", torch.float32)[0]
    torch.compile(ops.gate_residual, fullgraph=True, backend=backend)(x, gate.requires_grad_(gate_learns), residual)
    assert ("fastdiff.gate_residual.default" in {str(node.target) for node in graphs[0].nodes}) == gate_learns
