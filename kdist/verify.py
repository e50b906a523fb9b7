"""Whether a model trains alike on one device and on several, step by step and fused, and on rows kept and streamed.

Each side of a comparison is a short `fit` of the model's own step from the same start.  Where two part, the first layer
that does is looked for, and told with the likely reason.  What differs by design is held equal: dropout draws on each
device for itself, so that where devices are compared each draw gives the same value, under which nothing is dropped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import get_opaque_trace_state
from jax.sharding import PartitionSpec

from kdist.data import AnyLoader, ArrayLoader, BatchLoader
from kdist.distribution import BATCH_AXES, DataParallel
from kdist.errors import ConfigError, DataError
from kdist.modules import ModuleAdapter, Variables
from kdist.optimizers.transforms import path_name
from kdist.state import TrainState, shardings
from kdist.step import Step
from kdist.trainer import Trainer
from kdist.typing import Batch, PyTree, Sums

STEPS, MOST_STEPS = 4, 16
"""K, where the trainer does not say, and at the most; and how many batches are compared."""
TOLERANCES = {"bf16": 0.05, "f16": 0.01, "f32": 1e-3}
"""What two sides may differ by, relatively, by the coarsest dtype that the model computes in."""
NEARLY = 10
"""So many tolerances may still be rounding, in 16 bits."""
FLOOR = 1e-3
"""An array is not asked to be more exact than this share of the largest number of all: some gradients are 0 but for
rounding, such as those of a bias before a BatchNorm."""

HELD = (
    "Dropout and other draws differ from device to device by design: here every draw gives the same value, and nothing "
    "is dropped."
)
NOT_SYNCHRONISED = (
    "BatchNorm without an axis name normalises by the rows of its own device, which are fewer on more devices. Give it "
    "axis_name={axes!r}, or take it as it is, with enough rows a device."
)
FILLED = (
    "{rows} rows do not divide over {n} devices, and the rows that fill the batch count in its statistics. Choose a "
    "batch_size that divides."
)
OF_MICROBATCHES = (
    "Batch statistics are those of a microbatch, which holds other rows on other devices: by design. To compare all "
    "else, set microbatches to 1."
)
OTHER_ROWS = (
    "What it gives for a row, or what a remat or scan before it gives, depends on the other rows of its device, or on "
    "how many they are (x.mean(0), x.shape[0]). Compute each row by itself, or reduce over the devices too: "
    "jax.lax.pmean(..., {axes!r})."
)
ONE_NUMBER = (
    "The loss returns one number for the rows of a device, and the mean of these is the loss of the batch only where "
    "it is a plain mean over rows. Return a value a row."
)
AFTER_THE_OUTPUTS = (
    "The outputs agree, and what follows does not: a loss or a train_step that compares the rows of its device with "
    "each other, or a penalty that is no mean over rows. Make the loss a value a row."
)
IN_PYTHON = (
    "Something is drawn, counted or read in Python while the step is traced (np.random, a counter, the time) and "
    "stands as a constant in each program. Draw from the module's own random streams, and keep counts in its state."
)
UNSEEDED = (
    "The same rows came out otherwise when they were read again: an augmentation draws from a generator without a seed "
    "of its own. Draw from the generator that grain.transforms.RandomMap hands to it, which the seed, the epoch and "
    "the row decide."
)
NOT_FINITE = "NaN and infinity compare with nothing: look for them in the data (kdist train --check-finite) first."
ROUNDING = "This may be the rounding of {dtype}: try --precision float32 to see."


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two ways to train, side by side.

    Attributes:
        name: What is compared, such as "1 device : 8 devices".
        losses: The loss of each side, over all batches that were compared.
        difference: The largest relative difference of a gradient; of a parameter's change where steps are fused.
        tolerance: What it may be.
        where: The first place where they part; None if they agree.
        reason: The likely reason, and what to do.
        note: What was held equal, since it differs by design; empty if nothing was.

    Example:
        >>> Comparison("1 device : 8 devices", (0.5, 0.5), 1e-7, 1e-3).agrees
        True
    """

    name: str
    losses: tuple[float, float]
    difference: float
    tolerance: float
    where: str | None = None
    reason: str = ""
    note: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the two sides are the same to rounding."""
        return self.where is None


def verify(trainer: Trainer, loader: AnyLoader) -> list[Comparison]:
    """Trains a few steps in several ways, and compares losses and gradients.

    Args:
        trainer: Its distribution has the N devices; its parameters are as they were afterwards.
        loader: The data, the first rows of which are read twice.

    Returns:
        One device against N, one step at a time against K, and rows kept on the devices against rows read again and
        streamed.

    Raises:
        ConfigError: There is one device only, or several processes, or no optimizer.
        DataError: The data do not fit the model.

    Example:
        >>> import flax.linen as nn, kdist
        >>> trainer = kdist.Trainer(nn.Dense(1), optimizer="adam", loss="mse")
        >>> loader = kdist.data.from_arrays(np.ones((64, 3)), np.zeros((64, 1)), batch_size=16)
        >>> if trainer.distribution.num_devices > 1:
        ...     assert all(found.agrees for found in verify(trainer, loader))
    """
    if jax.process_count() > 1:
        raise ConfigError("Verifying compares with one device: run it in one process.")
    if trainer.distribution.num_devices == 1:
        raise ConfigError(
            "There is one device only, which has nothing to be compared with. Simulate several: JAX_PLATFORMS=cpu "
            "XLA_FLAGS=--xla_force_host_platform_device_count=8."
        )
    if trainer.optimizer is None:
        raise ConfigError("A model without an optimizer is not trained: there is nothing to verify.")
    k = trainer.steps_per_execution
    wanted = min(k, MOST_STEPS) if isinstance(k, int) and k > 1 else STEPS
    kept = _read(loader, wanted)
    once = isinstance(loader, BatchLoader) and not loader.source.restarts
    streamed = kept if once else _read(loader, wanted)
    getattr(loader, "close", lambda: None)()
    bench = _Bench(trainer, streamed, loader.batch_size)
    try:
        devices, fusing, feeds = bench.devices(), bench.fusing(), bench.feeds(kept, once=once)
    finally:
        trainer.adapter.write_back(bench.variables)
    if not (devices.agrees or fusing.agrees):  # programs for the same devices part already: that comes first
        devices = dataclasses.replace(devices, reason=fusing.reason)
    return [devices, fusing, feeds]


def _read(loader: AnyLoader, steps: int) -> Batch:
    """The rows of the first steps of an epoch, in memory."""
    if not isinstance(loader, BatchLoader):
        return loader.read(loader.order(0)[: steps * loader.batch_size])
    batches = loader.batches(0, fresh=True)
    taken = list(itertools.islice(batches, steps))
    batches.close()
    if not taken:
        raise DataError(f"The data are empty: {loader.source} yielded no batch.")
    return jax.tree.map(lambda *parts: np.concatenate(parts), *taken)


# A side -------------------------------------------------------------------------------------------


class _Kept(NamedTuple):
    """What went through a place in the optimizer, added up over the steps."""

    total: PyTree


def _keep() -> optax.GradientTransformation:
    """A place in a chain of transformations where all is added up that goes through, which is left as it is."""

    def update(updates: PyTree, state: _Kept, params: PyTree = None) -> tuple[PyTree, _Kept]:
        return updates, _Kept(jax.tree.map(jnp.add, state.total, updates))

    return optax.GradientTransformation(lambda params: _Kept(jax.tree.map(jnp.zeros_like, params)), update)


class _Seen(NamedTuple):
    """What a side came to, on the host: its mean loss, what was kept, and the model's other state after it."""

    loss: float
    total: PyTree
    model_state: PyTree


class _Side(Trainer):
    """The step of another trainer, on other devices and with another optimizer."""

    def __init__(self, of: Trainer, tx: optax.GradientTransformation, distribution: DataParallel, k: int) -> None:
        super().__init__(
            of.adapter,
            optimizer=tx,
            loss=of.plan.loss,
            loss_weights=of.plan.loss_weights,
            distribution=distribution,
            steps_per_execution=k,
            precision=of.precision,
            microbatches=of.microbatches,
            seed=of.seed,
            auto_scale_loss=False,
            sample_weight_mode=of.plan.sample_weight_mode,
        )
        self._of = of

    def train_step(self, step: Step, state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        """See `Trainer.train_step`."""
        return self._of.train_step(step, state, batch)

    def see(self, variables: Variables, key: jax.Array, loader: ArrayLoader) -> _Seen:
        """Trains an epoch from these variables, which are on the host, with this key."""
        state = TrainState(jnp.int32(0), *variables, self.init_opt_state(variables.params), key)
        # Training writes into what it is given, so that this must not be the memory of the variables.
        state = jax.device_put(state, shardings(state, self.distribution), may_alias=False)
        # float32 is to mean float32 on accelerators too, whose matrix units round to less by default.
        with jax.default_matmul_precision("highest"):
            state, history = self.fit(state, loader, epochs=1)
        parts = jax.tree.leaves(state.opt_state, is_leaf=_is_kept)
        total = next(part.total for part in parts if _is_kept(part))
        return _Seen(history.history["loss"][0], *jax.device_get((total, state.model_state)))


def _is_kept(part: Any) -> bool:
    return isinstance(part, _Kept)


def _held() -> jax.Array:
    """A key from which every draw is the same, a new one each time since training uses it up."""
    return jax.random.key(0, impl=_held_impl())


@functools.cache
def _held_impl() -> Any:
    """Draws a sixteenth of the way up, where a dropout of less than 15/16 drops nothing."""
    from jax.extend.random import define_prng_impl

    return define_prng_impl(
        key_shape=(2,),
        seed=lambda seed: jnp.zeros((2,), jnp.uint32),
        split=lambda key, shape: jnp.zeros((*shape, 2), jnp.uint32),
        random_bits=lambda key, width, shape: jnp.full(shape, 1 << (width - 4), f"uint{width}"),
        fold_in=lambda key, data: key,
        name="held",
        tag="held",
    )


# The comparisons ----------------------------------------------------------------------------------

Why = Callable[[_Seen, _Seen], tuple[str, str]]
"""Where two sides part, and the likely reason."""


class _Bench:
    """Makes the sides of a trainer, and compares them.

    Args:
        trainer: What is verified.
        rows: What it is trained on.
        batch_size: B.

    Attributes:
        variables: What training starts from.
    """

    def __init__(self, trainer: Trainer, rows: Batch, batch_size: int) -> None:
        self._trainer, self._rows, self._batch_size = trainer, rows, batch_size
        self._all = trainer.distribution
        self._one = DataParallel(devices=self._all.mesh.devices.flat[:1].tolist())
        self._steps = math.ceil(len(jax.tree.leaves(rows.x)[0]) / batch_size)
        self._first: Batch = jax.tree.map(lambda a: a[:batch_size], rows)
        self._frozen = optax.chain(_keep(), optax.set_to_zero())
        self._state = trainer.init(self._first)
        self.variables: Variables = jax.device_get(Variables(self._state.params, self._state.model_state))
        text = str(jax.make_jaxpr(self._forward(self._one))(*self._inputs(self._one)))
        self._dtype = next((name for name in TOLERANCES if f":{name}[" in text), "f32")
        self._draws, self._synchronised = "random_bits" in text, "psum" in text
        self._base = self._see(self._frozen, self._all, held=True)

    def devices(self) -> Comparison:
        """One device against all of them."""
        one = self._see(self._frozen, self._one, held=True)
        name = f"1 device : {self._all.num_devices} devices"
        return self._compared(name, one, self._base, self._why_of_devices, HELD if self._draws else "")

    def fusing(self) -> Comparison:
        """One step at a time against all of them in one program, with the trainer's own optimizer and keys."""
        assert self._trainer.optimizer is not None
        tx = optax.chain(self._trainer.optimizer.tx, _keep())
        single, fused = (self._see(tx, self._all, k=k) for k in (1, self._steps))
        note = "" if self._steps > 1 else "There is one batch only: nothing was fused."

        def why(single: _Seen, fused: _Seen) -> tuple[str, str]:
            return self._first_parted(single, fused, "change"), IN_PYTHON

        return self._compared(f"K=1 : K={self._steps}", single, fused, why, note)

    def feeds(self, before: Batch, *, once: bool) -> Comparison:
        """Rows that were read before and are kept on the devices against the rows that are streamed.

        Args:
            before: The rows as they were read before.
            once: Whether that is the same reading.
        """
        resident = self._see(self._frozen, self._all, rows=before, cache=True, held=True)
        note = "The data can be read once only: both sides had the same reading." if once else ""

        def why(resident: _Seen, streamed: _Seen) -> tuple[str, str]:
            other = _first_other_row(before, self._rows)
            return (self._first_parted(resident, streamed), IN_PYTHON) if other is None else (other, UNSEEDED)

        return self._compared("resident : streamed", resident, self._base, why, note)

    def _see(
        self,
        tx: optax.GradientTransformation,
        distribution: DataParallel,
        *,
        k: int = 1,
        rows: Batch | None = None,
        cache: bool = False,
        held: bool = False,
    ) -> _Seen:
        rows = self._rows if rows is None else rows
        loader = ArrayLoader(rows, self._batch_size, shuffle=False, seed=0, cache=cache)
        key = _held() if held else jax.random.key(self._trainer.seed)
        return _Side(self._trainer, tx, distribution, k).see(self.variables, key, loader)

    def _compared(self, name: str, a: _Seen, b: _Seen, why: Why, note: str) -> Comparison:
        difference = max(_differences(a.total, b.total).values(), default=0.0)
        others = {**_differences(a.model_state, b.model_state), **_differences(a.loss, b.loss)}
        most, tolerance = max(difference, *others.values()), TOLERANCES[self._dtype]
        where, reason = why(a, b) if most > tolerance else (None, "")
        if not math.isfinite(a.loss + b.loss):
            where, reason = "the loss", NOT_FINITE
        elif where and self._dtype != "f32" and most < NEARLY * tolerance:
            reason = f"{ROUNDING.format(dtype=self._dtype)} If not: {reason}"
        return Comparison(name, (a.loss, b.loss), difference, tolerance, where, reason, note)

    # Where and why ------------------------------------------------------------------------------

    def _why_of_devices(self, one: _Seen, many: _Seen) -> tuple[str, str]:
        layer = self._first_layer()
        parted = [path.split("/")[1:] for path in self._parted(one.model_state, many.model_state, "batch_stats/")]
        if layer is None and not parted:
            return self._first_parted(one, many), ONE_NUMBER if self._is_loss_one_number() else AFTER_THE_OUTPUTS
        where = self._first_parted(one, many) if layer is None else f"the output of {layer}"
        axes = BATCH_AXES if self._all.mesh.shape["replica"] > 1 else "data"
        if layer and not (layer.kind == "BatchNorm" or any(path[0] == layer.name for path in parted)):
            return where, OTHER_ROWS.format(axes=axes)
        if self._synchronised and self._trainer.microbatches > 1:
            return where, OF_MICROBATCHES
        if self._synchronised and self._batch_size % self._all.num_devices:
            return where, FILLED.format(rows=self._batch_size, n=self._all.num_devices)
        return where, NOT_SYNCHRONISED.format(axes=axes)

    def _is_loss_one_number(self) -> bool:
        return _Side(self._trainer, self._frozen, self._all, 1).bind(self._state, self._first).objective.exact

    def _parted(self, a: PyTree, b: PyTree, prefix: str = "") -> list[str]:
        tolerance = TOLERANCES[self._dtype]
        return [path for path, off in _differences(a, b).items() if off > tolerance and path.startswith(prefix)]

    def _first_parted(self, a: _Seen, b: _Seen, what: str = "gradient") -> str:
        """The first of the model's state and gradients, in the order of the layers, that is not the same."""
        states = [path.partition("/") for path in self._parted(a.model_state, b.model_state)]
        parted = [(path, f"the {kind} of {path}") for kind, _, path in states]
        parted += [(path, f"the {what} of {path}") for path in self._parted(a.total, b.total)]
        layers = [layer.name for layer in self._trainer.adapter.layers(self.variables, self._first.x)]

        def place(found: tuple[str, str]) -> int:
            return next((i for i, name in enumerate(layers) if f"{found[0]}/".startswith(f"{name}/")), len(layers))

        return min(parted, key=place)[1] if parted else "the loss"

    def _first_layer(self) -> _Layer | None:
        """The first layer of the model whose output for the first batch is not the same on one device and on all."""
        outputs = []
        for distribution in (self._one, self._all):
            called: list[_Layer] = []
            values = jax.jit(self._forward(distribution, called))(*self._inputs(distribution))
            rows = jax.tree.map(lambda a: a[: self._batch_size], jax.device_get(values))
            outputs.append(list(zip([*called, _Layer("", "the model")], rows, strict=True)))
        tolerance = TOLERANCES[self._dtype]
        return next(
            (
                layer
                for (layer, one), (_, many) in zip(*outputs, strict=False)
                if any(_difference(one[i], many[i]) > tolerance for i in one.keys() & many.keys())
            ),
            None,
        )

    def _forward(self, distribution: DataParallel, called: list[_Layer] | None = None) -> Callable[..., list[PyTree]]:
        """``(variables, x, key) -> outputs``, those of each layer that is noted in `called`, and last the model's.

        Each is the arrays of it that have the rows first, by number.
        """
        adapter, precision = self._trainer.adapter, self._trainer.precision

        def forward(variables: Variables, x: PyTree, key: jax.Array) -> list[PyTree]:
            cast = Variables(precision.cast(variables.params), variables.model_state)
            outputs: list[PyTree] = []
            here = get_opaque_trace_state()

            def note(layer: _Layer, output: PyTree) -> None:
                # What a layer gives inside a scan or a remat of the model's own stays in there.
                if called is not None and get_opaque_trace_state() == here:
                    called.append(layer)
                    outputs.append(output)

            with _calls_of(adapter, note):
                outputs.append(adapter.apply(cast, precision.cast(x), train=True, key=key).outputs)
            rows = len(jax.tree.leaves(x)[0])
            leaves = [dict(enumerate(jax.tree.leaves(out))) for out in outputs]
            return [{i: a for i, a in by_number.items() if jnp.shape(a)[:1] == (rows,)} for by_number in leaves]

        in_specs, out_specs = (PartitionSpec(), PartitionSpec(BATCH_AXES), PartitionSpec()), PartitionSpec(BATCH_AXES)
        return jax.shard_map(forward, mesh=distribution.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def _inputs(self, distribution: DataParallel) -> tuple[Variables, PyTree, jax.Array]:
        """What the forward pass of the first batch takes, filled up so that it divides over the devices."""
        rows = len(jax.tree.leaves(self._first.x)[0])
        filled = np.arange(-(-rows // distribution.num_devices) * distribution.num_devices) % rows
        return self.variables, jax.tree.map(lambda a: a[filled], self._first.x), _held()


class _Layer(NamedTuple):
    """A layer that was called."""

    name: str
    kind: str

    def __str__(self) -> str:
        return f"{self.name} ({self.kind})" if self.name else self.kind


@contextlib.contextmanager
def _calls_of(adapter: ModuleAdapter, note: Callable[[_Layer, PyTree], None]) -> Iterator[None]:
    """Notes what the layers right below the model give, Linen's and NNX's."""
    import flax.linen as nn

    def intercept(next_fn: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output, path = next_fn(*args, **kwargs), context.module.path
        if len(path) <= 1 and context.method_name == "__call__":
            note(_Layer("/".join(path), type(context.module).__name__), output)
        return output

    with nn.intercept_methods(intercept), _calls_of_nnx(getattr(adapter, "module", None), note):
        yield


@contextlib.contextmanager
def _calls_of_nnx(module: Any, note: Callable[[_Layer, PyTree], None]) -> Iterator[None]:
    """Notes calls through the classes of the module's layers: the objects are made anew for each program."""
    nnx = sys.modules.get("flax.nnx")  # an NNX module exists only if its package was imported
    if nnx is None or not isinstance(module, nnx.Module):
        yield
        return
    paths: dict[int, tuple[Any, ...]] = {}

    def noting(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not paths:  # the model itself is called first
                paths.update({id(layer): path for path, layer in nnx.iter_modules(self)})
            output = call(self, *args, **kwargs)
            path = paths.get(id(self), ())
            if path and all(isinstance(part, int) for part in path[1:]):
                note(_Layer("/".join(map(str, path)), type(self).__name__), output)
            return output

        return noted

    kinds = {type(layer) for _, layer in nnx.iter_modules(module) if callable(layer)}
    calls: dict[Any, Any] = {kind: kind.__call__ for kind in kinds}
    inherited = {kind for kind in kinds if "__call__" not in vars(kind)}
    try:
        for kind, call in calls.items():
            kind.__call__ = noting(call)
        yield
    finally:
        for kind, call in calls.items():
            if kind in inherited:
                del kind.__call__
            else:
                kind.__call__ = call


# Differences --------------------------------------------------------------------------------------


def _differences(a: PyTree, b: PyTree) -> dict[str, float]:
    """By path, how far two arrays are apart, relative to the largest number of either."""
    pairs = [
        (path_name(path), np.asarray(one), np.asarray(other))
        for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True)
    ]
    floor = FLOOR * max((_largest(one) for _, one, _ in pairs if one.dtype.kind not in "iub"), default=0.0)
    return {path: _difference(one, other, floor) for path, one, other in pairs}


def _difference(a: np.ndarray, b: np.ndarray, floor: float = 0.0) -> float:
    a, b = _exact(a), _exact(b)
    if np.array_equal(a, b, equal_nan=True):
        return 0.0
    if not np.isfinite([a, b]).all():
        return math.inf
    return _largest(a - b) / max(_largest(a), _largest(b), floor)


def _largest(a: np.ndarray) -> float:
    """The largest magnitude of what is finite."""
    return float(np.abs(_exact(a)).max(initial=0.0, where=np.isfinite(_exact(a))))


def _exact(a: np.ndarray) -> np.ndarray:
    return a.astype(np.complex128 if np.iscomplexobj(a) else np.float64)


def _first_other_row(a: Batch, b: Batch) -> str | None:
    """The first row that is not the same in two readings, by the leaf and the number that it was read as."""
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        same = (one == other) | ((one != one) & (other != other))
        if not same.all():
            row = int(np.flatnonzero(~same.reshape(len(one), -1).all(1))[0])
            return f"row {row} of {path_name(path)}, as it was read"
    return None
