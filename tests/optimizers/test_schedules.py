"""Schedules: values worked out by hand, and what a schedule of one's own needs."""

import jax
import numpy as np
import pytest
from updates import Run

from kdist import optimizers
from kdist.optimizers import schedules


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (schedules.ExponentialDecay(1.0, 2, 0.25), {0: 1.0, 1: 0.5, 2: 0.25, 4: 0.0625}),
        (schedules.ExponentialDecay(1.0, 2, 0.25, staircase=True), {0: 1.0, 1: 1.0, 2: 0.25, 3: 0.25}),
        (schedules.InverseTimeDecay(1.0, 2, 1.0), {0: 1.0, 2: 0.5, 6: 0.25}),
        (schedules.PiecewiseConstantDecay([2, 4], [1.0, 0.5, 0.1]), {0: 1.0, 2: 1.0, 3: 0.5, 4: 0.5, 5: 0.1, 99: 0.1}),
        (schedules.PiecewiseConstantDecay([], [0.3]), {0: 0.3, 99: 0.3}),
        (schedules.PolynomialDecay(1.0, 4, 0.0), {0: 1.0, 1: 0.75, 4: 0.0, 9: 0.0}),
        (schedules.PolynomialDecay(1.0, 4, 0.0, cycle=True), {0: 1.0, 4: 0.0, 5: 0.375, 8: 0.0}),
        (schedules.CosineDecay(1.0, 4, alpha=0.5), {0: 1.0, 2: 0.75, 4: 0.5, 9: 0.5}),
        (schedules.CosineDecay(0.0, 4, warmup_target=1.0, warmup_steps=2), {0: 0.0, 1: 0.5, 2: 1.0, 4: 0.5, 6: 0.0}),
        (schedules.CosineDecayRestarts(1.0, 2, m_mul=0.5), {0: 1.0, 1: 0.5, 2: 0.5, 4: 0.25, 6: 0.25}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values(schedule, expected):
    compiled = jax.jit(schedule)
    for step, rate in expected.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(compiled(np.int32(step)), rate, rtol=1e-6, atol=1e-7)
    assert schedules.deserialize(schedules.serialize(schedule)).get_config() == schedule.get_config()
    assert repr(schedule).startswith(type(schedule).__name__)


def test_a_schedule_of_ones_own():
    class Halves(schedules.LearningRateSchedule):
        def __init__(self, start):
            self.start = start

        def __call__(self, step):
            return self.start * 0.5**step

    optimizer = optimizers.SGD(Halves(1.0))
    run = Run(optimizer, {"w": np.zeros(1, np.float32)})
    found = [float(run.step({"w": np.ones(1, np.float32)})["w"][0]) for _ in range(3)]
    np.testing.assert_allclose(found, [-1.0, -1.5, -1.75])
    assert optimizer.learning_rate == 0.125
    assert Halves.from_config(Halves(2.0).get_config()).start == 2.0
