"""The statistics and the order of interleaved timing, on a clock that the test holds."""

import gc

import pytest

from bench.timing import Budget, Timing, interleave


class FakeMachine:
    """Every call takes the next of its own scripted durations; the clock is the sum of all that was done."""

    def __init__(self, **durations):
        self.durations = {name: iter(values) for name, values in durations.items()}
        self.clock = 0.0
        self.log = []

    def contenders(self):
        return {name: (lambda name=name: name) for name in self.durations}

    def measure(self, call):
        assert not gc.isenabled()
        name = call()
        seconds = next(self.durations[name])
        self.clock += seconds
        self.log.append(name)
        return seconds

    def run(self, budget, prepare=lambda call: None):
        return interleave(self.contenders(), self.measure, budget, prepare, now=lambda: self.clock)


def test_median_and_minimum_are_taken_per_contender():
    machine = FakeMachine(a=[0.005, 0.001, 0.002], b=[0.030, 0.010, 0.011])
    timings = machine.run(Budget(seconds=0.0, min_repetitions=3, max_repetitions=3))
    assert timings["a"] == Timing(median_ms=pytest.approx(2.0), min_ms=pytest.approx(1.0), repetitions=3)
    assert timings["b"] == Timing(median_ms=pytest.approx(11.0), min_ms=pytest.approx(10.0), repetitions=3)


def test_contenders_take_turns_and_the_first_one_changes():
    machine = FakeMachine(a=[1] * 3, b=[1] * 3, c=[1] * 3)
    machine.run(Budget(seconds=0.0, min_repetitions=3, max_repetitions=3))
    assert machine.log == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_preparation_runs_before_each_measured_call_and_is_given_it():
    machine = FakeMachine(a=[1] * 2, b=[1] * 2)
    machine.run(
        Budget(seconds=0.0, min_repetitions=2, max_repetitions=2), lambda call: machine.log.append(f"prepare {call()}")
    )
    assert machine.log == ["prepare a", "a", "prepare b", "b", "prepare b", "b", "prepare a", "a"]


@pytest.mark.parametrize(
    ("budget", "repetitions"),
    [
        (Budget(seconds=10.0, min_repetitions=1, max_repetitions=100), 5),  # a round takes 2 s
        (Budget(seconds=10.0, min_repetitions=8, max_repetitions=100), 8),
        (Budget(seconds=10.0, min_repetitions=1, max_repetitions=3), 3),
    ],
)
def test_repetitions_follow_the_budget(budget, repetitions):
    timings = FakeMachine(a=[1.0] * 100, b=[1.0] * 100).run(budget)
    assert {timing.repetitions for timing in timings.values()} == {repetitions}


def test_garbage_collection_is_restored_when_a_contender_fails():
    with pytest.raises(StopIteration):
        FakeMachine(a=[]).run(Budget(seconds=0.0, min_repetitions=1, max_repetitions=1))
    assert gc.isenabled()
