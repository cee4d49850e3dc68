"""The attention module against diffusers' own, and what it keeps of a text."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn

import fastdiff
from fastdiff.nn import Attention


@pytest.mark.parametrize("cross", (None, 24))
@pytest.mark.parametrize("bias", (False, True))
def test_drop_in_for_diffusers(cross, bias) -> None:
    processors = pytest.importorskip("diffusers.models.attention_processor")
    theirs = processors.Attention(32, cross, heads=4, dim_head=10, bias=bias)
    ours = Attention(32, cross, heads=4, dim_head=10, bias=bias)
    ours.load_state_dict(theirs.state_dict())
    hidden, text = torch.randn(2, 50, 32), None if cross is None else torch.randn(2, 7, cross)
    torch.testing.assert_close(ours(hidden, text), theirs(hidden, text), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(ours(hidden, text), theirs(hidden, text), rtol=1e-4, atol=1e-5)


def test_grouped_heads_and_lengths() -> None:
    attend = Attention(16, 12, heads=4, dim_head=8, kv_heads=2)
    hidden, text = torch.randn(2, 5, 16), torch.randn(2, 9, 12)
    lengths = torch.tensor([3, 9])
    whole = attend(hidden, text, lengths)
    torch.testing.assert_close(whole[:1], attend(hidden[:1], text[:1, :3]))
    torch.testing.assert_close(whole[1:], attend(hidden[1:], text[1:]))


@pytest.fixture
def attend() -> Attention:
    return Attention(16, 12, heads=2, dim_head=8)


def fresh(attend: Attention, hidden, text):
    with torch.enable_grad():
        return attend(hidden, text).detach()


def test_text_is_projected_once_for_all_steps(attend) -> None:
    hidden, text = torch.randn(3, 2, 5, 16), torch.randn(2, 9, 12)
    with torch.no_grad():
        results = [attend(hidden[0], text)]
        kept = attend._kept
        results += [attend(step, text) for step in hidden[1:]]
    assert kept is not None and attend._kept is kept
    for step, result in zip(hidden, results, strict=True):
        assert torch.equal(result, fresh(attend, step, text))


def test_no_stale_result(attend) -> None:
    """Another text, a text or a weight changed in place, new weights, autocast: the result is of the present ones."""
    hidden, text = torch.randn(2, 5, 16), torch.randn(2, 9, 12)

    def change_weight():
        attend.to_v.weight.mul_(2)

    def load():
        attend.load_state_dict({name: tensor + 1 for name, tensor in attend.state_dict().items()})

    def replace():
        attend.to_k.weight = nn.Parameter(torch.randn(16, 12))

    def move():
        attend.to_v.weight.data = torch.randn(16, 12)

    with torch.no_grad():
        before = attend(hidden, text)
        for change in (lambda: text.add_(1), lambda: text[0, 0].zero_(), change_weight, load, replace, move):
            change()
            after = attend(hidden, text)
            assert not torch.equal(after, before)
            assert torch.equal(after, fresh(attend, hidden, text))
            before = after
        attend.forget()
        with torch.autocast("cpu", torch.bfloat16):
            assert attend(hidden, text).dtype == torch.bfloat16
        assert torch.equal(attend(hidden, text), fresh(attend, hidden, text))
        other = text.clone() + 1
        assert torch.equal(attend(hidden, other), fresh(attend, hidden, other))


class Adapter(nn.Module):
    """As libraries wrap a projection: with a state of its own that is no parameter."""

    def __init__(self, projection: nn.Linear) -> None:
        super().__init__()
        self.projection = projection
        self.scale = 1.0

    def forward(self, x):
        return self.projection(x) * self.scale


def test_adapters_and_hooks_are_heard_at_every_call(attend) -> None:
    hidden, text, calls = torch.randn(2, 5, 16), torch.randn(2, 9, 12), []
    with torch.no_grad():
        before = attend(hidden, text)
        hook = attend.to_k.register_forward_hook(lambda *_: calls.append(1))
        assert torch.equal(attend(hidden, text), before) and calls == [1]
        hook.remove()
        attend.to_v = Adapter(attend.to_v)
        assert torch.equal(attend(hidden, text), before)
        attend.to_v.scale = 0.5
        assert not torch.equal(attend(hidden, text), before)


class Raced(Attention):
    """Attends to another text as soon as one is kept, as another thread may."""

    other = None

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "_kept" and value is not None and self.other is not None:
            hidden, text, self.other = *self.other, None
            self(hidden, text)


def test_threads_get_the_text_they_gave() -> None:
    attend, hidden, texts = Raced(16, 12, heads=2, dim_head=8), torch.randn(2, 5, 16), torch.randn(2, 2, 9, 12)
    with torch.no_grad():
        attend.other = (hidden, texts[1])
        result = attend(hidden, texts[0])
    assert torch.equal(result, fresh(attend, hidden, texts[0]))


def test_gradients_reach_the_text_after_it_was_kept(attend) -> None:
    hidden, text = torch.randn(2, 5, 16), torch.randn(2, 9, 12, requires_grad=True)
    with torch.no_grad():
        attend(hidden, text)
    attend(hidden, text).sum().backward()
    assert text.grad is not None and text.grad.any()
    assert attend.to_v.weight.grad is not None and attend.to_v.weight.grad.any()


def test_text_is_not_kept_alive(attend) -> None:
    """A new tensor at the address of a dead one is not taken for it."""
    hidden = torch.randn(2, 5, 16)
    with torch.no_grad():
        for _ in range(20):
            text = torch.randn(2, 9, 12)
            assert torch.equal(attend(hidden, text), fresh(attend, hidden, text))
            del text
            gc.collect()
        attend.forget()
        assert attend._kept is None


def test_inference_mode(attend) -> None:
    hidden = torch.randn(2, 5, 16)
    with torch.inference_mode():
        text = torch.randn(2, 9, 12)
        before = attend(hidden, text).clone()
        text.add_(1)
        assert not torch.equal(attend(hidden, text), before)


def test_copies_start_empty(attend) -> None:
    hidden, text = torch.randn(2, 5, 16), torch.randn(2, 9, 12)
    with torch.no_grad():
        attend(hidden, text)
        twin = copy.deepcopy(attend)
        assert torch.equal(twin(hidden, text), attend(hidden, text))


def test_compile_and_export() -> None:
    attend = Attention(16, 12, heads=2, dim_head=8)
    hidden, text = torch.randn(2, 5, 16), torch.randn(2, 9, 12)
    compiled = torch.compile(attend, fullgraph=True)
    torch.testing.assert_close(compiled(hidden, text), attend(hidden, text))
    with torch.no_grad():
        torch.testing.assert_close(compiled(hidden, text), attend(hidden, text))
        program = torch.export.export(attend, (hidden, text))
        torch.testing.assert_close(program.module()(hidden, text), attend(hidden, text))


def test_reference_switch(attend) -> None:
    hidden, text = torch.randn(2, 5, 16), torch.randn(2, 9, 12)
    with torch.no_grad(), fastdiff.use_reference():
        theirs = attend(hidden, text)
    torch.testing.assert_close(attend(hidden, text), theirs)


def test_errors() -> None:
    with pytest.raises(ValueError, match="kv_heads must divide the 4 heads, got 3"):
        Attention(16, heads=4, kv_heads=3)
