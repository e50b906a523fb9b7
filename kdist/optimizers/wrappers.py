"""Optimizers around an optimizer: dynamic loss scaling, and a bare optax transformation as an optimizer."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax

from kdist.errors import ConfigError
from kdist.naming import snake_case
from kdist.optimizers.arguments import COMMON_DEFAULTS, is_number, is_whole, refuse_unknown
from kdist.optimizers.base import Optimizer, OptStateHolder
from kdist.optimizers.loss_scale import with_dynamic_scale


class Given(Optimizer):
    """An optax transformation that the user built; its rate is live if it was injected.

    Args:
        tx: The transformation.

    Example:
        >>> import optax
        >>> Given(optax.adam(1e-3)).name
        'optax'
    """

    def __init__(self, tx: optax.GradientTransformation) -> None:
        self.name = "optax"
        self.loss_scale_factor: float | None = None
        self.tx = self.unscaled_tx = tx

    def learning_rates(self) -> dict[str, float]:
        """The injected rate, if there is one."""
        return {} if self._injected() is None else super().learning_rates()

    @property
    def iterations(self) -> int:
        """Updates so far, by a count in the state; 0 before training.

        Raises:
            AttributeError: The transformation does not count them.
        """
        state = None if self._holder is None else self._holder.read_opt_state()
        if state is None:
            return 0
        counts = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state) if _is_count(path)]
        if not counts:
            raise AttributeError("This optax transformation does not count its updates.")
        return int(np.asarray(counts[0]))

    def get_config(self) -> dict[str, Any]:
        """Not of an optax transformation.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("An optax transformation has no configuration: use one of kdist.optimizers.")

    def _given_rate(self) -> Any:
        raise AttributeError(
            "This optax transformation has no learning rate that can be read or set (before training, none has). "
            "Build it with optax.inject_hyperparams(...)(learning_rate=...), or use kdist.optimizers."
        )


def _is_count(path: tuple[Any, ...]) -> bool:
    return getattr(path[-1], "name", None) == "count" if path else False


def as_optimizer(given: Any) -> Optimizer:
    """An Optimizer as it is, or an optax transformation as one.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(given, Optimizer):
        return given
    if isinstance(given, optax.GradientTransformation):
        return Given(given)
    if isinstance(given, type) and issubclass(given, Optimizer):
        raise ConfigError(
            f"Expected an optimizer. Received: the class {given.__name__}. Create one: "
            f"kdist.optimizers.{given.__name__}(...)."
        )
    raise ConfigError(
        "Could not interpret optimizer identifier: expected a name, a kdist optimizer (an instance, "
        f"such as kdist.optimizers.Adam(1e-3)) or an optax transformation. Received: {given!r}."
    )


class LossScaleOptimizer(Optimizer):
    """Multiplies the loss by a scale that adapts itself, so that small gradients survive float16.

    A batch whose gradients are not all finite is skipped, and halves the scale; after
    `dynamic_growth_steps` finite ones in a row it doubles.  Logs show the loss as it is.

    Args:
        inner_optimizer: The optimizer; its `loss_scale_factor` is set to None.
        initial_scale: The scale to start with; 32768.0 by default.
        dynamic_growth_steps: How many finite batches double it; 2000 by default.
        name: The name; "loss_scale_optimizer" by default.
        others: Options of other optimizers, accepted at their defaults only.

    Raises:
        ConfigError: An argument is out of its range, or an option belongs to the inner optimizer.

    Example:
        >>> from kdist import optimizers
        >>> LossScaleOptimizer(optimizers.Adam(1e-3)).learning_rate
        0.001
    """

    def __init__(
        self,
        inner_optimizer: Any,
        initial_scale: float = 2.0**15,
        dynamic_growth_steps: int = 2000,
        name: str | None = None,
        **others: Any,
    ) -> None:
        if not others.pop("dynamic", True):
            raise ConfigError(
                "LossScaleOptimizer always adapts its scale. For a fixed one, set loss_scale_factor on the "
                "inner_optimizer, and use that alone. Received: dynamic=False."
            )
        refuse_unknown(
            "LossScaleOptimizer",
            others,
            ["inner_optimizer", "initial_scale", "dynamic_growth_steps", "dynamic", *COMMON_DEFAULTS],
        )
        defaults: dict[str, Any] = {**COMMON_DEFAULTS}
        for option, value in others.items():
            if value != defaults[option]:
                raise ConfigError(
                    f"LossScaleOptimizer has no {option}: set it on the inner_optimizer. Received: {option}={value!r}."
                )
        if not is_number(initial_scale) or initial_scale <= 0:
            raise ConfigError(f"initial_scale must be positive. Received: {initial_scale!r}.")
        if not is_whole(dynamic_growth_steps, 1):
            raise ConfigError(f"dynamic_growth_steps must be a positive integer. Received: {dynamic_growth_steps!r}.")
        self.inner_optimizer = as_optimizer(inner_optimizer)
        if isinstance(self.inner_optimizer, LossScaleOptimizer):
            raise ConfigError("The inner_optimizer of a LossScaleOptimizer cannot be one too.")
        self.inner_optimizer.loss_scale_factor = None
        self.name = name or snake_case(type(self).__name__)
        self.initial_scale, self.dynamic_growth_steps = initial_scale, dynamic_growth_steps
        self.loss_scale_factor = None
        self.unscaled_tx = self.inner_optimizer.unscaled_tx
        self.tx = with_dynamic_scale(self.unscaled_tx, initial_scale, dynamic_growth_steps)

    def attach(self, holder: OptStateHolder) -> None:
        """Makes `learning_rate` that of a run, through the inner optimizer."""
        self.inner_optimizer.attach(holder)

    @property
    def learning_rate(self) -> Any:
        """That of the inner optimizer."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.inner_optimizer.learning_rate = value

    def learning_rates(self) -> dict[str, float]:
        """Those of the inner optimizer."""
        return self.inner_optimizer.learning_rates()

    @property
    def iterations(self) -> int:
        """The inner optimizer's updates; skipped batches do not count."""
        return self.inner_optimizer.iterations

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """That of the inner optimizer."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        inner = self.inner_optimizer
        return {
            "inner_optimizer": {"class_name": type(inner).__name__, "config": inner.get_config()},
            "initial_scale": self.initial_scale,
            "dynamic_growth_steps": self.dynamic_growth_steps,
            "name": self.name,
        }
