"""Metric objects of clu, metrax and flax.nnx, taken for what they do; none of these packages is imported here.

Such an object holds arrays, and two of them merge.  Where merging is adding up, and the arrays of a batch are those
of its parts added up, the arrays are sums as kdist's own metrics have them.  Both are tried out, on a few made-up rows,
before the first batch.

Shapes: b rows.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from kdist.errors import ConfigError
from kdist.losses import align_weight
from kdist.metrics.base import Metric
from kdist.naming import snake_case
from kdist.typing import PyTree

PREDICTIONS = ("logits", "predictions", "preds", "y_pred", "values")
TARGETS = ("labels", "targets", "y_true")
WEIGHTS = ("sample_weights", "sample_weight", "weights", "mask")
"""What the parameters are called that take predictions, targets and weights; "mask" only tells rows from padding."""


class _Protocol(Protocol):
    """How a package makes, merges and reads its metrics."""

    def signatures(self) -> Iterator[inspect.Signature]:
        """Of the function that takes a batch, and of those that it hands further keywords on to."""

    def of(self, arguments: Mapping[str, Any]) -> PyTree:
        """The metric of one batch, a tree of arrays."""

    def merged(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> PyTree:
        """The metric of two batches, merged as the package does."""

    def compute(self, tree: PyTree) -> Any:
        """Its value."""


class _Clu:
    """Metrics that are made of a batch by a class method, as in clu and metrax."""

    def __init__(self, cls: Any) -> None:
        self._cls = cls

    def signatures(self) -> Iterator[inspect.Signature]:
        """See `_Protocol.signatures`."""
        return _signatures(self._cls, "from_model_output")

    def of(self, arguments: Mapping[str, Any]) -> PyTree:
        """See `_Protocol.of`."""
        return self._cls.from_model_output(**arguments)

    def merged(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> PyTree:
        """See `_Protocol.merged`."""
        return self.of(first).merge(self.of(second))

    def compute(self, tree: PyTree) -> Any:
        """See `_Protocol.compute`."""
        return tree.compute()


class _NNX:
    """Metrics that batches are put into one after the other, as in flax.nnx."""

    def __init__(self, metric: Any) -> None:
        from flax import nnx

        self._nnx = nnx
        self._cls = type(metric)
        self._definition, self._state = nnx.split(metric)
        self._argument = getattr(metric, "argname", None)

    def signatures(self) -> Iterator[inspect.Signature]:
        """See `_Protocol.signatures`; the keyword that an Average reads has its name in the object."""
        for signature in _signatures(self._cls, "update"):
            parameters = signature.parameters
            if _takes_more(signature) and self._argument and not {*PREDICTIONS, *TARGETS} & set(parameters):
                named = inspect.Parameter(self._argument, inspect.Parameter.KEYWORD_ONLY)
                signature = inspect.Signature([*list(parameters.values())[:-1], named])
            yield signature

    def of(self, arguments: Mapping[str, Any]) -> PyTree:
        """See `_Protocol.of`."""
        return self._after(arguments)

    def merged(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> PyTree:
        """See `_Protocol.merged`."""
        return self._after(first, second)

    def _after(self, *batches: Mapping[str, Any]) -> PyTree:
        metric = self._nnx.merge(self._definition, self._state, copy=True)
        metric.reset()
        for arguments in batches:
            metric.update(**arguments)
        return self._nnx.state(metric)

    def compute(self, tree: PyTree) -> Any:
        """See `_Protocol.compute`."""
        return self._nnx.merge(self._definition, tree).compute()


def is_foreign(thing: Any) -> bool:
    """Whether `ForeignMetric` takes it: a metric of clu or metrax, or one of flax.nnx.

    Example:
        >>> is_foreign(max)
        False
    """
    clu = all(callable(getattr(thing, name, None)) for name in ("from_model_output", "merge", "compute"))
    return clu or _is_nnx(thing)


def _is_nnx(thing: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")  # one of its metrics exists only if the package was imported
    return nnx is not None and isinstance(thing, nnx.metrics.Metric)


class ForeignMetric(Metric):
    """A metric of clu, metrax or flax.nnx.

    Predictions, targets and weights are passed by keyword, under the names that the metric has for them (see
    `PREDICTIONS`, `TARGETS`, `WEIGHTS`).  One that takes neither weights nor a mask cannot tell rows that fill a
    batch from data, so that batches must divide by the number of devices.

    Args:
        metric: A class or an object with `from_model_output`, `merge` and `compute`, or an nnx metric.
        name: The name in logs; the class's in snake case by default.

    Raises:
        ConfigError: It needs what a model does not give, or (when it is first used) it does not add up.

    Example:
        >>> import dataclasses
        >>> @jax.tree_util.register_dataclass
        ... @dataclasses.dataclass
        ... class Error:
        ...     total: jax.Array
        ...     count: jax.Array
        ...
        ...     @classmethod
        ...     def from_model_output(cls, predictions, labels, sample_weights):
        ...         return cls((sample_weights * (predictions - labels)).sum(), sample_weights.sum())
        ...
        ...     def merge(self, other):
        ...         return Error(self.total + other.total, self.count + other.count)
        ...
        ...     def compute(self):
        ...         return self.total / self.count
        >>> ForeignMetric(Error)([1.0, 2.0], [1.5, 2.5])
        0.5
    """

    def __init__(self, metric: Any, name: str | None = None) -> None:
        super().__init__(name or snake_case(metric.__name__ if isinstance(metric, type) else type(metric).__name__))
        self._protocol: _Protocol = _NNX(metric) if _is_nnx(metric) else _Clu(_class_of(metric))
        self._predictions, self._targets, self._weights = self._names()
        self.exact = self._weights is None
        self._structure: Any = None
        self._tried: set[Any] = set()

    def weigh(self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array) -> jax.Array:
        """The weights, if the metric has any.

        Raises:
            ConfigError: It can only leave rows out, or not even that.
        """
        if self._weights in (None, "mask"):
            raise ConfigError(
                f"The metric {self.name!r} takes no sample weights. Put it in metrics, not in weighted_metrics."
            )
        return weight

    def sums(self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array | None = None) -> PyTree:
        """The arrays of the metric of these rows, as float32."""
        self._try_out(jnp.shape(y_true)[1:], jnp.result_type(y_true), jnp.shape(y_pred)[1:])
        leaves, self._structure = jax.tree.flatten(self._protocol.of(self._arguments(y_true, y_pred, weight)))
        return tuple(jnp.asarray(leaf, jnp.float32) for leaf in leaves)

    def result(self, sums: PyTree) -> float | np.ndarray:
        """What the metric computes of the arrays; 0 where nothing counted."""
        if not any(np.any(leaf) for leaf in sums):
            return 0.0
        leaves = [jnp.asarray(leaf, jnp.float32) for leaf in sums]
        value = np.asarray(self._protocol.compute(jax.tree.unflatten(self._structure, leaves)))
        return float(value) if value.ndim == 0 else value

    # The batch, by the metric's names for it ------------------------------------------------------

    def _names(self) -> tuple[list[str], list[str], str | None]:
        """What the metric calls the predictions and the targets, all names of both if it takes any, and the weights."""
        signatures = list(self._protocol.signatures())
        known = {name for signature in signatures for name in signature.parameters}
        first = signatures[0].parameters.values()
        predictions = [p.name for p in first if p.name in PREDICTIONS]
        targets = [p.name for p in first if p.name in TARGETS]
        if not predictions and not targets and _takes_more(signatures[0]):
            predictions, targets = list(PREDICTIONS), list(TARGETS)
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        needed = {p.name for p in first if p.default is p.empty and p.kind not in kinds}
        unknown = needed - {*predictions, *targets, *WEIGHTS}
        if unknown or not predictions:
            raise ConfigError(self._needs(", ".join(sorted(unknown)) or "no predictions"))
        return predictions, targets, next((name for name in WEIGHTS if name in known), None)

    def _needs(self, what: str) -> str:
        return (
            f"The metric {self.name!r} needs {what}. A model gives it predictions (as {', '.join(PREDICTIONS)}), "
            f"targets (as {', '.join(TARGETS)}) and weights (as {', '.join(WEIGHTS)})."
        )

    def _arguments(self, y_true: jax.Array, y_pred: jax.Array, weight: jax.Array | None) -> dict[str, Any]:
        arguments = {**dict.fromkeys(self._predictions, y_pred), **dict.fromkeys(self._targets, y_true)}
        if self._weights is not None:
            # Some broadcast weights from the last axis on, others from the first; one for each value suits both.
            shape = y_true.shape if self._targets else y_pred.shape
            weight = jnp.ones(shape) if weight is None else jnp.broadcast_to(align_weight(weight, shape), shape)
            arguments[self._weights] = weight > 0 if self._weights == "mask" else weight
        return arguments

    # Whether it adds up ---------------------------------------------------------------------------

    def _try_out(self, true_shape: tuple[int, ...], true_dtype: Any, pred_shape: tuple[int, ...]) -> None:
        """Compares parts of made-up rows with the whole of them, once for each kind of rows.

        Raises:
            ConfigError: The whole is not the sum of its parts, or rows that are masked count.
        """
        kind = (true_shape, true_dtype, pred_shape)
        if kind in self._tried:
            return
        rng = np.random.default_rng(0)
        classes = pred_shape[-1] if pred_shape else 2
        true = rng.integers(0, max(classes, 2), (6, *true_shape)).astype(true_dtype)
        pred = rng.uniform(0.05, 0.95, (6, *pred_shape)).astype(np.float32)
        with jax.ensure_compile_time_eval():
            rows = jnp.asarray(true), jnp.asarray(pred), jnp.ones(6)
            first, second = ([a[:4] for a in rows], [a[4:] for a in rows])
            one, other = (self._made(self._protocol.of, part) for part in (first, second))
            self._require([a.shape for a in one] == [a.shape for a in other], "its arrays grow with the rows")
            both = [a + b for a, b in zip(one, other, strict=True)]
            merged, whole = self._made(self._protocol.merged, first, second), self._made(self._protocol.of, rows)
            self._require(_alike(merged, both), "two of it do not merge by adding up")
            self._require(_alike(whole, both), "its arrays for a batch are not those of parts, added up")
            if self._weights is not None:
                masked = self._made(self._protocol.of, (*rows[:2], jnp.arange(6) < 4))
                self._require(_alike(masked, one), f"rows whose {self._weights} is 0 count")
            value = self._protocol.compute(self._protocol.of(self._arguments(*rows)))
        if not hasattr(value, "dtype") and not isinstance(value, (int, float)):
            raise ConfigError(f"The metric {self.name!r} computes {value!r}: expected a number or an array.")
        self._tried.add(kind)

    def _made(self, make: Callable[..., PyTree], *batches: Any) -> list[np.ndarray]:
        try:
            tree = make(*(self._arguments(*batch) for batch in batches))
        except KeyError as error:  # it looks among its keywords for one that a model does not give
            raise ConfigError(self._needs(str(error))) from error
        return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]

    def _require(self, found: bool, otherwise: str) -> None:
        if not found:
            raise ConfigError(
                f"The metric {self.name!r} cannot be computed in parts: {otherwise}. kdist adds up metrics over "
                "devices and steps; use one of kdist.metrics, or write one that has sums."
            )


def _alike(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    if [a.shape for a in found] != [a.shape for a in wanted]:
        return False
    return all(np.allclose(a, b, 1e-4, 1e-5) for a, b in zip(found, wanted, strict=True))


def _class_of(metric: Any) -> Any:
    return metric if isinstance(metric, type) else type(metric)


def _takes_more(signature: inspect.Signature) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())


def _signatures(cls: Any, method: str) -> Iterator[inspect.Signature]:
    """Of a method, and of those of base classes for as long as keywords are handed on to them."""
    for base in cls.__mro__:
        if method not in vars(base):
            continue
        signature = inspect.signature(getattr(base, method))
        if inspect.isfunction(vars(base)[method]):  # not bound to a class: `self` comes first
            signature = signature.replace(parameters=list(signature.parameters.values())[1:])
        yield signature
        if not _takes_more(signature):
            return
