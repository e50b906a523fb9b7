"""What the tests of optimizers share: parameters, gradients, and the least that trains."""

import jax
import numpy as np
import optax

P0 = {"w": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), "b": np.array([0.1, -0.2], np.float32)}
GRADS = [
    {"w": np.array([[0.3, -0.4], [1.0, 0.2]], np.float32), "b": np.array([3.0, -4.0], np.float32)},
    {"w": np.array([[-0.1, 0.7], [0.5, -0.6]], np.float32), "b": np.array([0.2, 0.3], np.float32)},
    {"w": np.array([[0.9, 0.1], [-0.2, 0.4]], np.float32), "b": np.array([-1.0, 0.5], np.float32)},
]


class Run:
    """The least that holds an optimizer's state: parameters that take one update after the other."""

    def __init__(self, optimizer, params=P0):
        self.optimizer = optimizer
        self.params = jax.device_put(params, jax.devices()[0])
        self.opt_state = jax.device_put(jax.jit(optimizer.tx.init)(self.params), jax.devices()[0])
        self._update = jax.jit(optimizer.tx.update)
        optimizer.attach(self)

    def read_opt_state(self):
        return self.opt_state

    def write_opt_state(self, opt_state):
        self.opt_state = opt_state

    def step(self, grads):
        updates, self.opt_state = self._update(grads, self.opt_state, self.params)
        self.params = optax.apply_updates(self.params, updates)
        return self.params


def trained(optimizer, grads=GRADS):
    run = Run(optimizer)
    for g in grads:
        run.step(g)
    return run.params


def close(found, expected, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), found, expected)
