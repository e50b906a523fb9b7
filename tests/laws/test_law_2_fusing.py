"""Law 2: steps_per_execution is a matter of speed: 1, 4 and "auto" give the same run, with and without a watcher.

Eleven steps an epoch, the last of them of three rows, with dropout, resident and streamed, fused in a loop (the
MLP) and as a chain of single steps (the CNN). Weights agree bit for bit: the same program runs, only less or more
often. Logs agree to the rounding of their sums, which are added up in float32 within an execution.
"""

import functools

import jax
import pytest
from models import crossentropy, data, make, moved, same

import kdist

ROWS, BATCH_SIZE, STEPS = 43, 4, 11


@pytest.fixture(autouse=True)
def auto_fuses(monkeypatch):
    """However slow this machine is, "auto" finds that many steps fit into an execution."""
    monkeypatch.setattr("kdist.pace.EXECUTION_SECONDS", 1e4)


class Watcher(kdist.callbacks.Callback):
    """Notes which batch hooks are called, and with which logs."""

    def __init__(self):
        super().__init__()
        self.began, self.ended, self.logs = [], [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.began.append(batch)

    def on_train_batch_end(self, batch, logs=None):
        self.ended.append(batch)
        self.logs.append(dict(logs))


class Bystander(Watcher):
    """A watcher that lets training go on meanwhile."""

    async_safe = True


def run(family, k, cache, callback=None, look=True):
    x, y, weight = data(ROWS, images=family == "cnn")
    model = make(family, "linen", **({"dropout": 0.5} if family == "mlp" else {}))
    model.compile(
        kdist.optimizers.Adam(0.01),
        crossentropy(),
        metrics=["accuracy"],
        steps_per_execution=k,
        distribution=kdist.DataParallel(devices=jax.devices()[:8]),
    )
    model.build(x)
    before = model.get_weights()
    history = model.fit(x, y, BATCH_SIZE, 3, 0, callback, sample_weight=weight, cache=cache).history
    weights = model.get_weights()
    assert moved(before, weights)
    if not look:
        return {"weights": weights}, {"fit": history}
    evaluated = model.evaluate(x, y, BATCH_SIZE, sample_weight=weight, verbose=0)
    return {"weights": weights, "predict": model.predict(x, BATCH_SIZE, 0)}, {"fit": history, "evaluate": evaluated}


def check(got, want, *, exact_logs=False):
    """Weights and predictions are equal, and logs are, or nearly."""
    for (a, b), rtol in zip(zip(got, want, strict=True), (0, 0 if exact_logs else 1e-6), strict=True):
        same(a, {name: b[name] for name in a}, rtol=rtol, atol=0)


@functools.cache
def watched_one_by_one(family, cache):
    watcher = Watcher()
    return run(family, 1, cache, watcher), watcher


@pytest.mark.parametrize(("family", "cache", "k"), [("mlp", False, 4), ("mlp", True, "auto"), ("cnn", True, 4)])
def test_fusing_changes_nothing(family, cache, k):
    one_by_one, _ = watched_one_by_one(family, cache)
    check(run(family, k, cache), one_by_one)


def test_an_integer_is_honoured_under_a_watcher():
    """Every fourth step is seen, its logs being those of single steps; the last index is the planned one."""
    one_by_one, every = watched_one_by_one("mlp", True)
    watcher = Watcher()
    check(run("mlp", 4, True, watcher, look=False), one_by_one)
    assert every.began == every.ended == [*range(STEPS)] * 3
    assert watcher.began == [0, 4, 8] * 3
    assert watcher.ended == [3, 7, 11] * 3
    for epoch in range(3):
        seen = [every.logs[epoch * STEPS + step] for step in (3, 7, STEPS - 1)]
        same(watcher.logs[epoch * 3 : epoch * 3 + 3], seen, rtol=1e-6, atol=0)


def test_auto_is_one_under_a_watcher():
    one_by_one, every = watched_one_by_one("mlp", True)
    watcher = Watcher()
    check(run("mlp", "auto", True, watcher, look=False), one_by_one, exact_logs=True)
    assert watcher.began == watcher.ended == every.ended
    same(watcher.logs, every.logs, rtol=0, atol=0)


def test_auto_fuses_beside_a_bystander():
    """It is called fewer times than there are steps, and the last call of an epoch has the epoch's logs."""
    one_by_one, every = watched_one_by_one("mlp", True)
    bystander = Bystander()
    check(run("mlp", "auto", True, bystander, look=False), one_by_one)
    assert len(bystander.ended) < len(every.ended)
    assert bystander.ended[-1] == STEPS - 1
    same(bystander.logs[-1], every.logs[-1], rtol=1e-6, atol=0)


class HalvingRate(Watcher):
    """Changes what the next step must already use."""

    def on_train_batch_end(self, batch, logs=None):
        self.model.optimizer.learning_rate = 0.5 * self.model.optimizer.learning_rate


def test_what_a_watcher_changes_holds_from_the_next_step_on():
    """A halved rate after every step equals a schedule that halves it at every step."""
    x, y, _ = data(24)

    def weights(rate, callback):
        model = make("mlp", "linen")
        model.compile(kdist.optimizers.SGD(rate), crossentropy())
        model.fit(x, y, 4, 1, 0, callback)
        return model.get_weights()

    same(weights(0.5, HalvingRate()), weights(lambda step: 0.5 * 0.5**step, None), rtol=1e-6, atol=1e-7)
