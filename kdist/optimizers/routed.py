"""Different optimizers for different parameters: a map from paths to optimizers, and the optimizer that follows it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdist.errors import ConfigError
from kdist.optimizers.arguments import is_number
from kdist.optimizers.base import Optimizer, OptStateHolder
from kdist.optimizers.loss_scale import with_fixed_scale
from kdist.optimizers.transforms import path_name
from kdist.optimizers.wrappers import LossScaleOptimizer, as_optimizer
from kdist.typing import PyTree


class Parameter(NamedTuple):
    """A parameter as a function that chooses optimizers sees it.

    Attributes:
        path: Where it is, such as ``encoder/dense/kernel``.
        shape: Its shape.
        dtype: Its dtype.

    Example:
        >>> kernel = Parameter("encoder/dense/kernel", (3, 2), np.float32)
        >>> kernel.name, len(kernel.shape)
        ('kernel', 2)
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


class OptimizerMap(MutableMapping[str, Optimizer]):
    """Optimizers by the path of a parameter, or by a regular expression that matches the whole of it.

    Args:
        default_optimizer: For parameters that nothing matches.
        optimizer_map: Paths or expressions to start with; none by default.

    Raises:
        ConfigError: Something in it is no optimizer, or one that cannot be a part of a MultiOptimizer.

    Example:
        >>> from kdist import optimizers
        >>> chosen = OptimizerMap(optimizers.Adam(), {"encoder/.*": optimizers.SGD()})
        >>> chosen["encoder/dense/kernel"].name, chosen["decoder/dense/kernel"].name
        ('sgd', 'adam')
    """

    def __init__(self, default_optimizer: Any, optimizer_map: dict[str, Any] | None = None) -> None:
        if optimizer_map is not None and not isinstance(optimizer_map, dict):
            raise ConfigError(f"optimizer_map must be a dict from paths to optimizers. Received: {optimizer_map!r}.")
        self._default = _as_part(default_optimizer)
        self._map: dict[str, Optimizer] = {}
        for key, optimizer in (optimizer_map or {}).items():
            self[key] = optimizer

    @property
    def default_optimizer(self) -> Optimizer:
        """The optimizer of parameters that nothing matches."""
        return self._default

    def __getitem__(self, path: str) -> Optimizer:
        """The optimizer of a path: its own, else that of the one expression that matches it, else the default.

        Raises:
            ConfigError: More than one expression matches.
        """
        if path in self._map:
            return self._map[path]
        matches = [pattern for pattern in self._map if re.fullmatch(pattern, path)]
        if len(matches) > 1:
            raise ConfigError(
                f"Several expressions of the OptimizerMap match the parameter {path!r}: {matches}. "
                "Make one of them narrower, or add the path itself."
            )
        return self._map[matches[0]] if matches else self._default

    def __setitem__(self, key: str, optimizer: Any) -> None:
        """Adds a path or an expression.

        Raises:
            ConfigError: It is there already, is no expression, or the optimizer is none.
        """
        if not isinstance(key, str):
            raise ConfigError(f"A key of an OptimizerMap must be a path or a regular expression. Received: {key!r}.")
        if key in self._map:
            raise ConfigError(f"{key!r} is in the OptimizerMap already, with {self._map[key]!r}: delete it first.")
        try:
            re.compile(key)
        except re.error as error:
            raise ConfigError(f"A key of an OptimizerMap must be a regular expression. {key!r}: {error}.") from error
        self._map[key] = _as_part(optimizer)

    def __delitem__(self, key: str) -> None:
        del self._map[key]

    def __len__(self) -> int:
        return len(self._map)

    def __iter__(self) -> Iterator[str]:
        return iter(self._map)

    def __contains__(self, key: object) -> bool:
        return key in self._map

    def __call__(self, variable: Parameter) -> Optimizer:
        """The optimizer of a parameter."""
        return self[variable.path]


class RoutedState(NamedTuple):
    """What a MultiOptimizer carries.

    Attributes:
        batches: Batches seen, int32.
        parts: The states of the parts that train something, in optax's `PartitionState`.
    """

    batches: jax.Array
    parts: Any


class MultiOptimizer(Optimizer):
    """Several optimizers, each for its parameters.

    It has no `learning_rate`: read and set those of its `optimizers`.  Clips by the global norm, averages
    and accumulation are a part's own, over its own parameters.

    Args:
        optimizer_map: An OptimizerMap, or a function that gives the optimizer of a `Parameter`; it is called
            once for each, when the model is built.
        loss_scale_factor: Multiply the loss by this; it replaces that of the parts; none by default.
        name: The name; "multioptimizer" by default.

    Raises:
        ConfigError: An argument is wrong, or an optimizer cannot be a part.

    Example:
        >>> from kdist import optimizers
        >>> chosen = OptimizerMap(optimizers.Adam(1e-3), {"encoder/.*": optimizers.SGD(0.1)})
        >>> MultiOptimizer(chosen).learning_rates()
        {'learning_rate_sgd': 0.1, 'learning_rate_adam': 0.001}
    """

    def __init__(
        self,
        optimizer_map: OptimizerMap | Callable[[Parameter], Any],
        loss_scale_factor: float | None = None,
        name: str | None = None,
    ) -> None:
        if not callable(optimizer_map):
            raise ConfigError(
                "optimizer_map must be a kdist.optimizers.OptimizerMap, or a function from a parameter to an "
                f"optimizer. Received: {optimizer_map!r}."
            )
        if loss_scale_factor is not None and not (is_number(loss_scale_factor) and loss_scale_factor > 0):
            raise ConfigError(f"loss_scale_factor must be positive or None. Received: {loss_scale_factor!r}.")
        self.name = name or type(self).__name__.lower()
        self.loss_scale_factor = loss_scale_factor
        self._choose = optimizer_map
        self._parts: dict[str, Optimizer] = {}
        self._chosen: dict[str, str] = {}
        if isinstance(optimizer_map, OptimizerMap):
            for optimizer in (*optimizer_map.values(), optimizer_map.default_optimizer):
                self._label(optimizer)
        self.unscaled_tx = optax.GradientTransformation(self._init, self._update)
        self.tx = self.unscaled_tx
        if loss_scale_factor is not None:
            self.tx = with_fixed_scale(self.tx, loss_scale_factor)

    @property
    def optimizers(self) -> list[Optimizer]:
        """The parts, those of the map first; a function's are known once the model is built."""
        return list(self._parts.values())

    @property
    def learning_rate(self) -> Any:
        """There is none.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError("A MultiOptimizer has no learning rate of its own: read those of its optimizers.")

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        raise AttributeError("A MultiOptimizer has no learning rate of its own: set those of its optimizers.")

    def learning_rates(self) -> dict[str, float]:
        """The rate of each part, as "learning_rate_<name>"; parts of one name are numbered from the second on."""
        return {
            f"learning_rate_{label}": rate
            for label, part in self._parts.items()
            for rate in part.learning_rates().values()
        }

    @property
    def iterations(self) -> int:
        """Batches so far; 0 before training."""
        state = self._read()
        return 0 if state is None else int(np.asarray(state.batches))

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Not of a MultiOptimizer.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("Call exclude_from_weight_decay on the optimizers of the MultiOptimizer that decay.")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"optimizer_map": self._choose, "loss_scale_factor": self.loss_scale_factor, "name": self.name}

    # Its transformation -----------------------------------------------------------------------------

    def _init(self, params: PyTree) -> RoutedState:
        return RoutedState(jnp.zeros((), jnp.int32), self._partition(params).init(params))

    def _update(self, grads: PyTree, state: RoutedState, params: PyTree = None) -> tuple[PyTree, RoutedState]:
        updates, parts = self._partition(params).update(grads, state.parts, params)
        return updates, RoutedState(optax.safe_increment(state.batches), parts)

    def _partition(self, params: PyTree) -> optax.GradientTransformation:
        """The parts that have parameters, each with its own."""
        labels = jax.tree_util.tree_map_with_path(self._route, params)
        used = set(jax.tree.leaves(labels))
        return optax.partition({k: part.unscaled_tx for k, part in self._parts.items() if k in used}, labels)

    def _route(self, path: tuple[Any, ...], param: jax.Array) -> str:
        """The label of a parameter's optimizer, which is chosen once."""
        name = path_name(path)
        if name not in self._chosen:
            self._chosen[name] = self._label(self._choose(Parameter(name, param.shape, param.dtype)))
        return self._chosen[name]

    def _label(self, optimizer: Any) -> str:
        """The name of a part among the parts; a new one joins them, numbered if there is one of its name."""
        for label, part in self._parts.items():
            if part is optimizer or part.tx is optimizer:
                return label
        part = _as_part(optimizer)
        part.loss_scale_factor = self.loss_scale_factor
        label = next(n for n in _numbered(part.name) if n not in self._parts)
        part.name = label
        self._parts[label] = part
        part.attach(_PartHolder(self, label))
        return label

    def _read(self) -> RoutedState | None:
        """Its state in the run; None before there is one."""
        state = None if self._holder is None else self._holder.read_opt_state()
        return next((s for s in jax.tree.leaves(state, is_leaf=_is_routed) if _is_routed(s)), None)


class _PartHolder(OptStateHolder):
    """Where a part finds its state: in that of the MultiOptimizer."""

    def __init__(self, whole: MultiOptimizer, label: str) -> None:
        self._whole, self._label = whole, label

    def read_opt_state(self) -> PyTree | None:
        state = self._whole._read()
        return None if state is None else state.parts.inner_states.get(self._label)

    def write_opt_state(self, opt_state: PyTree) -> None:
        holder = self._whole._holder
        assert holder is not None

        def replace(part: Any) -> Any:
            if not _is_routed(part):
                return part
            inner = {**part.parts.inner_states, self._label: opt_state}
            return part._replace(parts=part.parts._replace(inner_states=inner))

        holder.write_opt_state(jax.tree.map(replace, holder.read_opt_state(), is_leaf=_is_routed))


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(1))


def _is_routed(part: Any) -> bool:
    return isinstance(part, RoutedState)


def _as_part(optimizer: Any) -> Optimizer:
    """An optimizer that can be a part of a MultiOptimizer.

    Raises:
        ConfigError: It is no optimizer, or one that has parts or scales the loss by itself.
    """
    part = as_optimizer(optimizer)
    if isinstance(part, LossScaleOptimizer):
        raise ConfigError(
            "A LossScaleOptimizer cannot be a part of a MultiOptimizer: put it around, "
            "LossScaleOptimizer(MultiOptimizer(...))."
        )
    if isinstance(part, MultiOptimizer):
        raise ConfigError("A MultiOptimizer cannot be a part of a MultiOptimizer: put all parts in one OptimizerMap.")
    return part
