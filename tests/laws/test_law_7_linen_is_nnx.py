"""Law 7: a Linen and an NNX module that are the same function of equal weights train and predict alike."""

import jax
import numpy as np
import pytest
from models import crossentropy, data, make, moved, same

import kdist


@pytest.mark.parametrize(
    ("family", "batch_norm"),
    [
        pytest.param("mlp", False, id="mlp"),
        pytest.param("mlp", True, id="mlp with batch norm"),
        pytest.param("cnn", True, id="cnn with batch norm"),
    ],
)
def test_linen_is_nnx(family, batch_norm):
    """Both start from one set of random variables and do the same things."""
    x, y, weight = data(21, images=family == "cnn")
    rng = np.random.default_rng(2)
    linen, nnx = (make(family, kind, batch_norm=batch_norm) for kind in ("linen", "nnx"))
    for model in (linen, nnx):
        model.compile(
            kdist.optimizers.SGD(0.1, momentum=0.9),
            crossentropy(),
            metrics=["accuracy"],
            distribution=kdist.DataParallel(devices=jax.devices()[:8]),
        )
        model.build(x)
    linen.set_weights([rng.uniform(0.1, 0.9, w.shape).astype(w.dtype) for w in linen.get_weights()])
    start = linen.get_weights()
    assert moved(nnx.get_weights(), start)
    nnx.variables = linen.variables
    same(nnx.get_weights(), start, rtol=0, atol=0)

    def go_on(model):
        return {
            "before": model.evaluate(x, y, 8, 0, weight),
            "history": model.fit(x, y, 8, 3, 0, sample_weight=weight).history,
            "variables": jax.device_get(model.variables),
            "after": model.evaluate(x, y, 8, 0, weight),
            "predict": model.predict(x, 8, 0),
        }

    want, got = go_on(linen), go_on(nnx)
    same(got, want, rtol=1e-5, atol=1e-6)
    assert set(want["variables"]) == ({"params", "batch_stats"} if batch_norm else {"params"})
    assert moved(start, linen.get_weights())


def test_set_weights_carries_over():
    x, _, _ = data(9)
    linen, nnx = make("mlp", "linen", batch_norm=True), make("mlp", "nnx", batch_norm=True)
    linen.build(x)
    nnx.build(x)
    nnx.set_weights([w + 0.25 for w in linen.get_weights()])
    linen.set_weights(nnx.get_weights())
    same(nnx.predict(x, verbose=0), linen.predict(x, verbose=0), rtol=1e-6, atol=1e-7)


def test_an_nnx_module_holds_the_trained_state():
    """Called by itself after fit, in evaluation mode, it gives what the model gives."""
    x, y, _ = data(21)
    model = make("mlp", "nnx", batch_norm=True)
    module = model.adapter.module
    module.eval()
    before = module(x)
    model.compile("sgd", crossentropy())
    model.fit(x, y, 8, 2, 0)
    module.eval()
    assert moved([before], [module(x)])
    same(jax.device_get(module(x)), model.predict(x, verbose=0), rtol=1e-6, atol=1e-7)
