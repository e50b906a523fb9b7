"""kdist verify: what agrees, and each usual reason why a model does not, found and named."""

import dataclasses
import functools
import os
from pathlib import Path

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import kdist
from kdist.cli import main
from kdist.config import Data
from kdist.data import from_arrays, from_batches, from_source
from kdist.verify import verify

CONFIGS = Path(__file__).parents[2] / "configs"
ROWS, FEATURES, CLASSES = 64, 6, 3
ALL_AGREE = {"1 device : 8 devices": True, "K=1 : K=4": True, "resident : streamed": True}


def data():
    rng = np.random.default_rng(3)
    return rng.normal(size=(ROWS, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, ROWS).astype(np.int32)


class Net(nn.Module):
    """Dense, something in the middle, Dense."""

    middle: str = "relu"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(8, name="hidden")(x)
        if self.middle == "norm":
            x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name, name="norm")(x)
        if self.middle == "dropout":
            x = nn.Dropout(0.5, deterministic=not train, name="drop")(x)
        if self.middle == "centre":
            x = Centre(name="centre")(x)
        if self.middle == "remat":
            x = nn.remat(Centre)(name="centre")(x)
        if self.middle == "python":
            x = x * np.random.uniform()
        return nn.Dense(CLASSES, name="out")(nn.relu(x))


class Centre(nn.Module):
    """What it gives for a row depends on the other rows."""

    @nn.compact
    def __call__(self, x):
        return x - x.mean(0)


class NNXCentre(nnx.Module):
    """Alike."""

    def __call__(self, x):
        return x - x.mean(0)


class NNXNet(nnx.Module):
    """Linear, something in the middle, Linear."""

    def __init__(self, middle):
        rngs = nnx.Rngs(0)
        self.hidden, self.middle = nnx.Linear(FEATURES, 8, rngs=rngs), middle
        self.out = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.middle(self.hidden(x))))


LOSS = kdist.losses.SparseCategoricalCrossentropy(from_logits=True)


def verified(module, loss=LOSS, loader=None, **arguments):
    """The comparisons by name."""
    trainer = kdist.Trainer(module, optimizer=optax.sgd(0.1), loss=loss, **arguments)
    found = verify(trainer, from_arrays(*data(), batch_size=16) if loader is None else loader)
    return {comparison.name: comparison for comparison in found}


def agreeing(found):
    return {name: comparison.agrees for name, comparison in found.items()}


def of_devices(found):
    """The comparison of devices, which alone parts."""
    assert agreeing(found) == {**ALL_AGREE, "1 device : 8 devices": False}
    return found["1 device : 8 devices"]


# From the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields", "held"), [("digits", [], True), ("digits_augmented", ["--features", "4"], False)]
)
def test_configs_agree(capsys, name, fields, held):
    """The digits have dropout, which differs by design, and is told of; the augmented ones have BatchNorm."""
    assert main(["verify", str(CONFIGS / f"{name}.py"), *fields]) == 0
    out = capsys.readouterr().out
    assert f"{name} on 8 cpu devices" in out and out.count("agree") == 3 and "PART" not in out
    told = "1 device : 8 devices: Dropout and other draws differ from device to device by design" in out
    assert told == held


@dataclasses.dataclass(frozen=True)
class WithBatchNorm(kdist.Config):
    """A fault, with a field to mend it by."""

    batch_size: int = 16
    loss: str = "sparse_categorical_crossentropy"
    axis_name: str | None = None

    def make_module(self):
        return Net("norm", self.axis_name)

    def make_loss(self):
        return LOSS

    def make_data(self):
        return Data(*data())


@pytest.mark.parametrize(("arguments", "code"), [([], 1), (["--axis-name", "data"], 0)])
def test_batch_norm_without_an_axis_name_is_named(arguments, code, capsys):
    assert main(["verify", f"{__name__}:WithBatchNorm", *arguments]) == code
    out = capsys.readouterr().out
    told = "First at the output of norm (BatchNorm). BatchNorm without an axis name" in out
    assert told == (code == 1) == ("Give it axis_name='data'" in out) == ("PART" in out)
    assert "by design" not in out  # nothing was held


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--devices", "1"], "one device only"), (["--batch-sise", "3"], "batch_sise"), (["--devices", "9"], "1 .. 8")],
)
def test_mistakes(arguments, message, capsys):
    assert main(["verify", str(CONFIGS / "digits.py"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_one_device_simulates_eight(monkeypatch, capfd):
    """In a process of its own, since this one has counted its devices."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    assert main(["verify", f"{__name__}:WithBatchNorm"]) == 1
    out = capfd.readouterr().out
    assert "One cpu device here: verifying on 8 simulated CPU devices." in out
    assert "run on 8 cpu devices" in out and "norm (BatchNorm)" in out


# Reasons -----------------------------------------------------------------------------------------


def test_batch_norm_of_nnx():
    """The module, which a fit writes into, is as it was."""
    module = NNXNet(nnx.BatchNorm(8, rngs=nnx.Rngs(0)))
    before = jax.device_get(nnx.state(module))
    found = of_devices(verified(module))
    assert found.where == "the output of middle (BatchNorm)" and "axis_name='data'" in found.reason
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(nnx.state(module)), before)


def test_batch_norm_in_a_sequential_model():
    model = kdist.Sequential([nn.Dense(8), nn.BatchNorm(), nn.Dense(CLASSES)])
    found = of_devices(verified(model.adapter))
    assert found.where == "the output of BatchNorm" and "axis_name='data'" in found.reason


@pytest.mark.parametrize(
    ("batch_size", "microbatches", "reason"),
    [(12, 1, "12 rows do not divide over 8 devices"), (16, 2, "statistics are those of a microbatch")],
)
def test_batch_norm_with_an_axis_name_parts_where_rows_are_grouped_otherwise(batch_size, microbatches, reason):
    loader = from_arrays(*data(), batch_size=batch_size)
    assert reason in of_devices(verified(Net("norm", "data"), loader=loader, microbatches=microbatches)).reason


@pytest.mark.parametrize(
    ("module", "where"),
    [(Net("centre"), "centre (Centre)"), (NNXNet(NNXCentre()), "middle (NNXCentre)"), (Net("remat"), "out (Dense)")],
    ids=["linen", "nnx", "the next one after what is hidden in a remat"],
)
def test_a_layer_that_looks_at_other_rows(module, where):
    found = of_devices(verified(module))
    assert found.where == f"the output of {where}" and "x.mean(0)" in found.reason


def root_mean_square(y_true, y_pred):
    return jnp.sqrt(optax.softmax_cross_entropy_with_integer_labels(y_pred, y_true).mean())


def mean(y_true, y_pred):
    return optax.softmax_cross_entropy_with_integer_labels(y_pred, y_true).mean()


def test_a_loss_that_is_one_number():
    found = of_devices(verified(Net(), root_mean_square))
    assert found.where == "the gradient of hidden/bias" and "Return a value a row" in found.reason
    assert found.losses[0] != found.losses[1]


def test_a_loss_of_nan_is_no_agreement():
    found = verified(Net(), lambda y_true, y_pred: jnp.nan * y_pred.mean(-1))
    assert not any(agreeing(found).values())
    assert {comparison.where for comparison in found.values()} == {"the loss"}


def test_a_loss_that_compares_rows():
    found = of_devices(verified(Net(), lambda y_true, y_pred: jnp.abs(y_pred - y_pred.mean(0)).mean(-1)))
    assert "The outputs agree, and what follows does not" in found.reason


class Noise(grain.transforms.RandomMap):
    """Noise, by the generator that it is given or by NumPy's own."""

    def __init__(self, seeded):
        self.seeded = seeded

    def random_map(self, element, rng):
        x, y = element
        draw = rng.normal if self.seeded else np.random.normal
        return x + draw(size=x.shape).astype(np.float32), y


@pytest.mark.parametrize("seeded", [True, False])
def test_an_augmentation_without_a_seed(seeded):
    loader = from_source(list(zip(*data(), strict=True)), batch_size=16, transforms=[Noise(seeded)])
    found = verified(Net(), loader=loader)
    assert agreeing(found) == {**ALL_AGREE, "resident : streamed": seeded}
    if not seeded:
        comparison = found["resident : streamed"]
        assert comparison.where == "row 0 of x, as it was read" and "RandomMap" in comparison.reason
        assert comparison.difference > comparison.tolerance


def test_what_python_draws_is_another_constant_in_each_program():
    found = verified(Net("python"))
    assert not any(agreeing(found).values())
    assert all("np.random" in comparison.reason for comparison in found.values())


def test_dropout_would_part_if_it_were_not_held(monkeypatch):
    monkeypatch.setattr("kdist.verify.bench.held_key", functools.partial(jax.random.key, 0))
    assert not verified(Net("dropout"))["1 device : 8 devices"].agrees


# What is compared, and how closely ---------------------------------------------------------------


def test_sixteen_bits_have_a_tolerance_of_their_own():
    found = verified(Net(), precision="mixed_bfloat16")
    assert agreeing(found) == ALL_AGREE
    assert {comparison.tolerance for comparison in found.values()} == {0.05}
    assert 1e-5 < found["1 device : 8 devices"].difference < 0.05


def test_split_states_microbatches_and_means_agree():
    """A loss that is one number, a mean over rows, is that of the batch on any number of devices."""
    distribution = kdist.DataParallel(zero_stage=3)
    assert agreeing(verified(Net(), mean, distribution=distribution, microbatches=2)) == ALL_AGREE


def test_batches_that_come_once():
    x, y = data()
    loader = from_batches((x[i : i + 16], y[i : i + 16]) for i in range(0, ROWS, 16))
    found = verified(Net(), loader=loader)
    assert agreeing(found) == ALL_AGREE and "once only" in found["resident : streamed"].note
