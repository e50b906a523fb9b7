"""The table of `Model.summary`: layers, shapes, parameters and bytes, checked by its rows."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

import kdist
from kdist.errors import NotCompiledError


class Linen(nn.Module):
    """Layers, a statistic and a parameter of its own."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(8, name="body")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return self.param("scale", nn.initializers.ones, (2,)) * nn.Dense(2, name="head")(x)


class NNX(nnx.Module):
    """Nearly the same, and a layer that is never called."""

    def __init__(self, rngs):
        self.body = nnx.Linear(4, 8, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)
        self.unused = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.body(x))


def rows(model):
    """The cells of the table, and the lines below it."""
    printed = []
    model.summary(print_fn=printed.append)
    (text,) = printed
    lines = text.splitlines()
    table = [[cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]] for line in lines]
    return [row for row in table if len(row) == 4], [
        line for line in lines if " bytes a device" in line and ":" in line
    ]


def test_linen():
    model = kdist.Model(Linen(), name="mine")
    model.compile("adam", "mse", distribution=kdist.DataParallel(devices=jax.devices()[:2]))
    model.fit(np.ones((6, 4)), np.ones((6, 2)), verbose=0)
    table, totals = rows(model)
    assert table == [
        ["layer", "output shape", "parameters", "bytes a device"],
        ["body (Dense)", "(rows, 8)", "40", "160"],
        ["norm (BatchNorm)", "(rows, 8)", "16", "64"],
        ["head (Dense)", "(rows, 2)", "18", "72"],
        ["(of the model itself)", "", "2", "8"],
    ]
    assert totals[0] == "parameters: 76 in 304 bytes a device"
    assert totals[1] == "model state: 16 in 64 bytes a device"
    assert totals[2].startswith("optimizer state: ")


def test_nnx():
    model = kdist.Model(NNX(nnx.Rngs(0)))
    model.build((None, 4))
    table, totals = rows(model)
    assert table[1:] == [
        ["body (Linear)", "(rows, 8)", "40", "160"],
        ["head (Linear)", "(rows, 2)", "18", "72"],
        ["unused (Linear)", "not called", "12", "48"],
    ]
    assert totals == ["parameters: 70 in 280 bytes a device"]


def test_sequential_and_a_pair():
    model = kdist.Sequential([nn.Conv(3, (2, 2)), nn.relu, (lambda key, x: {}, lambda p, x: x.reshape(x.shape[0], -1))])
    model.build((None, 5, 5, 1))
    assert [row[1:3] for row in rows(model)[0][1:]] == [
        ["(rows, 5, 5, 3)", "15"],
        ["(rows, 5, 5, 3)", "0"],
        ["(rows, 75)", "0"],
    ]
    pair = kdist.Model((lambda key, x: {"w": np.ones((4, 2), np.float32)}, lambda p, x: {"a": x @ p["w"], "b": x}))
    pair.build((None, 4))
    assert [row[1:3] for row in rows(pair)[0][1:]] == [["(rows, 2), (rows, 4)", "8"]]


def test_it_prints_and_names_the_model(capsys):
    model = kdist.Model(nn.Dense(2), name="mine")
    with pytest.raises(NotCompiledError, match="build"):
        model.summary()
    model.build((None, 3))
    model.summary()
    assert "Model: mine" in capsys.readouterr().out
