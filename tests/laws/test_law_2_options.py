"""Laws 2 and 8 for what an optimizer carries along and what callbacks and generators ask for.

K = 1, 4 and "auto" skip the same steps, accumulate and average alike, bit for bit; and none of it costs a program.
"""

import jax
import numpy as np
import pytest
from models import crossentropy, data, make, moved, same

import kdist

ROWS, BATCH_SIZE, STEPS, EPOCHS = 43, 4, 11, 2
optimizers = kdist.optimizers


@pytest.fixture(autouse=True)
def auto_fuses(monkeypatch):
    """However slow this machine is, "auto" finds that many steps fit into an execution."""
    monkeypatch.setattr("kdist.pace.EXECUTION_SECONDS", 1e4)


def compiled(k, optimizer="sgd", **arguments):
    model = make("mlp", "linen")
    devices = kdist.DataParallel(devices=jax.devices()[:8])
    model.compile(optimizer, crossentropy(), steps_per_execution=k, distribution=devices, **arguments)
    return model


def scaling():
    return optimizers.LossScaleOptimizer(optimizers.SGD(0.1), initial_scale=1024.0, dynamic_growth_steps=3)


OPTIONS = {
    "a skipped step": (scaling, {"precision": "mixed_float16"}),
    "accumulation": (lambda: optimizers.Adam(0.01, gradient_accumulation_steps=3), {}),
    "average": (lambda: optimizers.Adam(0.01, use_ema=True, ema_momentum=0.6, ema_overwrite_frequency=5), {}),
}


def run(k, name):
    make_optimizer, arguments = OPTIONS[name]
    x, y, _ = data(ROWS)
    if name == "a skipped step":
        x[6] = 6e4
    model = compiled(k, make_optimizer(), **arguments)
    model.build(x)
    before = model.get_weights()
    model.fit(x, y, BATCH_SIZE, EPOCHS, 0)
    assert moved(before, model.get_weights())
    return jax.device_get((model.state.params, model.state.opt_state))


@pytest.mark.parametrize("name", OPTIONS)
def test_fusing_changes_nothing(name):
    one = run(1, name)
    for k in (4, "auto"):
        same(run(k, name), one, rtol=0, atol=0)
    if name == "a skipped step":  # it grew, and less often than if no step had been skipped
        good = EPOCHS * STEPS // 3
        assert 1024 < optimizers.loss_scale(one[1]) < 1024 * 2.0**good


class EveryFourth(kdist.callbacks.Callback):
    """Notes the batches, counted through all epochs, that its hook sees among those that it acts on."""

    batch_stride = 4

    def __init__(self):
        super().__init__()
        self.epoch, self.seen, self.updates = 0, [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        count = self.epoch * STEPS + batch + 1
        if count % self.batch_stride == 0:
            self.seen.append(count)
            self.updates.append(int(self.model.state.step))


def test_a_stride_keeps_executions_fused():
    x, y, _ = data(ROWS)
    plain, watched, watcher = compiled("auto"), compiled("auto"), EveryFourth()
    plain.fit(x, y, BATCH_SIZE, 3, 0)
    watched.fit(x, y, BATCH_SIZE, 3, 0, watcher)
    assert watcher.seen == watcher.updates == [*range(4, 3 * STEPS + 1, 4)]  # nothing ran ahead of it
    assert watched._trainer.traces["train"] == plain._trainer.traces["train"]
    same(watched.get_weights(), plain.get_weights(), rtol=0, atol=0)


@pytest.mark.parametrize("k", ["auto", 4])
def test_a_generator_compiles_at_most_two_programs(k):
    """Ten batches of four rows and one of three, an epoch."""
    x, y, _ = data(ROWS)

    def batches():
        while True:
            for start in range(0, ROWS, BATCH_SIZE):
                yield x[start : start + BATCH_SIZE], y[start : start + BATCH_SIZE]

    model = compiled(k)
    model.fit(batches(), steps_per_epoch=STEPS, epochs=3, verbose=0)
    assert int(model.state.step) == 3 * STEPS
    assert 1 <= model._trainer.traces["train"] <= 2
    want = compiled(1)
    want.fit(x, y, BATCH_SIZE, 3, 0, shuffle=False)
    same(model.get_weights(), want.get_weights())
    assert np.isfinite(model.get_weights()[0]).all()
