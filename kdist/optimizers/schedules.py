"""Learning rate schedules by Keras's names, arguments, defaults and values: callables of the step, counted from 0.

Any function of the step is a schedule, those of optax too; these are for who knows Keras's.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdist.errors import ConfigError, unknown_name

__all__ = [
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "InverseTimeDecay",
    "LearningRateSchedule",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "deserialize",
    "serialize",
]


class LearningRateSchedule:
    """The base of schedules: override `__call__`, and keep the constructor's arguments as attributes.

    Example:
        >>> class Halving(LearningRateSchedule):
        ...     def __init__(self, start, every):
        ...         self.start, self.every = start, every
        ...     def __call__(self, step):
        ...         return self.start * 0.5 ** (step // self.every)
        >>> Halving(0.1, every=10)(25)
        0.025
    """

    def __call__(self, step: Any) -> Any:
        """The rate of a step, a scalar.

        Args:
            step: How many batches came before, an int or an int32 scalar.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(step).")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments.

        Example:
            >>> ExponentialDecay(0.1, decay_steps=10, decay_rate=0.5).get_config()["decay_steps"]
            10
        """
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LearningRateSchedule:
        """A schedule with the arguments that `get_config` gave."""
        return cls(**config)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_config().items())})"


class ExponentialDecay(LearningRateSchedule):
    """``initial_learning_rate * decay_rate ** (step / decay_steps)``.

    Args:
        initial_learning_rate: The rate of step 0.
        decay_steps: The steps in which it is multiplied by `decay_rate`.
        decay_rate: The factor.
        staircase: Whether it stays the same in between; False by default.
        name: A name; "ExponentialDecay" by default.

    Raises:
        ConfigError: `decay_steps` is not positive.

    Example:
        >>> print(ExponentialDecay(0.1, decay_steps=10, decay_rate=0.5)(20))
        0.025
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        decay_rate: float,
        staircase: bool = False,
        name: str = "ExponentialDecay",
    ) -> None:
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = _positive("decay_steps", decay_steps)
        self.decay_rate = decay_rate
        self.staircase = staircase
        self.name = name

    def __call__(self, step: Any) -> jax.Array:
        """The rate of a step, float32."""
        return self.initial_learning_rate * self.decay_rate ** _periods(step, self.decay_steps, self.staircase)


class InverseTimeDecay(LearningRateSchedule):
    """``initial_learning_rate / (1 + decay_rate * step / decay_steps)``.

    Args:
        initial_learning_rate: The rate of step 0.
        decay_steps: The steps in which the divisor grows by `decay_rate`.
        decay_rate: That growth.
        staircase: Whether the rate stays the same in between; False by default.
        name: A name; "InverseTimeDecay" by default.

    Raises:
        ConfigError: `decay_steps` is not positive.

    Example:
        >>> print(InverseTimeDecay(0.1, decay_steps=10, decay_rate=0.5)(20))
        0.05
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: float,
        decay_rate: float,
        staircase: bool = False,
        name: str = "InverseTimeDecay",
    ) -> None:
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = _positive("decay_steps", decay_steps)
        self.decay_rate = decay_rate
        self.staircase = staircase
        self.name = name

    def __call__(self, step: Any) -> jax.Array:
        """The rate of a step, float32."""
        return self.initial_learning_rate / (1 + self.decay_rate * _periods(step, self.decay_steps, self.staircase))


class PiecewiseConstantDecay(LearningRateSchedule):
    """``values[i]`` for ``boundaries[i - 1] < step <= boundaries[i]``.

    Args:
        boundaries: The last step of every value but the last, increasing.
        values: The rates, one more than boundaries.
        name: A name; "PiecewiseConstant" by default.

    Raises:
        ConfigError: The lengths do not fit, or the boundaries decrease.

    Example:
        >>> schedule = PiecewiseConstantDecay([2, 4], [1.0, 0.5, 0.1])
        >>> print([float(schedule(step)) for step in (2, 3)])
        [1.0, 0.5]
    """

    def __init__(self, boundaries: Sequence[float], values: Sequence[float], name: str = "PiecewiseConstant") -> None:
        if len(boundaries) != len(values) - 1:
            raise ConfigError(
                "PiecewiseConstantDecay needs one more value than boundaries. "
                f"Received: {len(boundaries)} boundaries {list(boundaries)} and {len(values)} values {list(values)}."
            )
        if list(boundaries) != sorted(boundaries):
            raise ConfigError(f"The boundaries of PiecewiseConstantDecay must increase. Received: {list(boundaries)}.")
        self.boundaries = boundaries
        self.values = values
        self.name = name

    def __call__(self, step: Any) -> jax.Array:
        """The rate of a step, float32."""
        passed = (jnp.asarray(step) > np.asarray(self.boundaries)).sum()
        return jnp.asarray(self.values, jnp.float32)[passed]


class PolynomialDecay(LearningRateSchedule):
    """From the initial to the end rate along ``(1 - step / decay_steps) ** power``.

    Args:
        initial_learning_rate: The rate of step 0.
        decay_steps: The steps until the end rate.
        end_learning_rate: The rate from there on; 0.0001 by default.
        power: The exponent; 1 is a straight line; 1.0 by default.
        cycle: Whether to go on instead with the next multiple of `decay_steps`; False by default.
        name: A name; "PolynomialDecay" by default.

    Raises:
        ConfigError: `decay_steps` is not positive.

    Example:
        >>> print(PolynomialDecay(0.1, decay_steps=10, end_learning_rate=0.0)(5))
        0.05
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        end_learning_rate: float = 0.0001,
        power: float = 1.0,
        cycle: bool = False,
        name: str = "PolynomialDecay",
    ) -> None:
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = _positive("decay_steps", decay_steps)
        self.end_learning_rate = end_learning_rate
        self.power = power
        self.cycle = cycle
        self.name = name

    def __call__(self, step: Any) -> jax.Array:
        """The rate of a step, float32."""
        periods = _periods(step, self.decay_steps)
        done = periods / jnp.maximum(jnp.ceil(periods), 1) if self.cycle else jnp.minimum(periods, 1)
        start, end = self.initial_learning_rate, self.end_learning_rate
        return (start - end) * (1 - done) ** self.power + end


class CosineDecay(LearningRateSchedule):
    """Half a cosine down to a fraction `alpha`, after a linear warm-up if there is one.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2017).

    Args:
        initial_learning_rate: The rate of step 0.
        decay_steps: The steps of the decay, which follow those of the warm-up.
        alpha: Where it ends, as a fraction of where it begins; 0.0 by default.
        name: A name; "CosineDecay" by default.
        warmup_target: The rate at the end of the warm-up, from which it decays; None, the default, for no warm-up.
        warmup_steps: The steps of the warm-up; 0 by default.

    Raises:
        ConfigError: `decay_steps` is not positive.

    Example:
        >>> schedule = CosineDecay(0.0, decay_steps=10, warmup_target=0.1, warmup_steps=5)
        >>> print([round(float(schedule(step)), 4) for step in (0, 5, 10, 15)])
        [0.0, 0.1, 0.05, 0.0]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        alpha: float = 0.0,
        name: str = "CosineDecay",
        warmup_target: float | None = None,
        warmup_steps: int = 0,
    ) -> None:
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = _positive("decay_steps", decay_steps)
        self.alpha = alpha
        self.name = name
        self.warmup_target = warmup_target
        self.warmup_steps = warmup_steps

    def __call__(self, step: Any) -> jax.Array:
        """The rate of a step, float32."""
        step = jnp.asarray(step, jnp.float32)
        if self.warmup_target is None:
            return optax.cosine_decay_schedule(self.initial_learning_rate, self.decay_steps, self.alpha)(step)
        decay = optax.cosine_decay_schedule(self.warmup_target, self.decay_steps, self.alpha)
        if self.warmup_steps <= 0:
            return decay(step)
        warmup = optax.linear_schedule(self.initial_learning_rate, self.warmup_target, self.warmup_steps)
        return optax.join_schedules([warmup, decay], [self.warmup_steps])(step)


class CosineDecayRestarts(LearningRateSchedule):
    """Half a cosine down to a fraction `alpha`, again and again.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2017).

    Args:
        initial_learning_rate: The rate of step 0.
        first_decay_steps: The steps of the first period.
        t_mul: How much longer each period is than the one before; 2.0 by default.
        m_mul: How much higher it starts; 1.0 by default.
        alpha: Where each ends, as a fraction of the initial rate; 0.0 by default.
        name: A name; "SGDRDecay" by default.

    Raises:
        ConfigError: `first_decay_steps` is not positive.

    Example:
        >>> schedule = CosineDecayRestarts(0.1, first_decay_steps=10)
        >>> print([round(float(schedule(step)), 4) for step in (0, 5, 10, 20, 30)])
        [0.1, 0.05, 0.1, 0.05, 0.1]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        first_decay_steps: int,
        t_mul: float = 2.0,
        m_mul: float = 1.0,
        alpha: float = 0.0,
        name: str = "SGDRDecay",
    ) -> None:
        self.initial_learning_rate = initial_learning_rate
        self.first_decay_steps = _positive("first_decay_steps", first_decay_steps)
        self.t_mul = t_mul
        self.m_mul = m_mul
        self.alpha = alpha
        self.name = name

    def __call__(self, step: Any) -> jax.Array:
        """The rate of a step, float32."""
        periods = _periods(step, self.first_decay_steps)
        if self.t_mul == 1:
            restarts = jnp.floor(periods)
            done = periods - restarts
        else:  # period i starts after 1 + t + ... + t^(i - 1) of the first one
            t = jnp.float32(self.t_mul)
            restarts = jnp.floor(jnp.log(1 - periods * (1 - t)) / jnp.log(t))
            done = (periods - (1 - t**restarts) / (1 - t)) / t**restarts
        height = 0.5 * self.m_mul**restarts * (1 + jnp.cos(math.pi * done))
        return self.initial_learning_rate * ((1 - self.alpha) * height + self.alpha)


def serialize(schedule: LearningRateSchedule) -> dict[str, Any]:
    """A schedule as a dict of plain values, which `deserialize` reads.

    Args:
        schedule: One of the schedules of `kdist.optimizers.schedules`, or a class of your own with `get_config`.

    Example:
        >>> config = serialize(PolynomialDecay(0.1, decay_steps=100))
        >>> config["class_name"], deserialize(config).decay_steps
        ('PolynomialDecay', 100)
    """
    return {"class_name": type(schedule).__name__, "config": schedule.get_config()}


def deserialize(config: dict[str, Any]) -> LearningRateSchedule:
    """A schedule from ``{"class_name": ..., "config": {...}}``.

    Args:
        config: The name of a schedule of this file, and its arguments.

    Raises:
        ConfigError: The name is unknown.

    Example:
        >>> deserialize({"class_name": "ExponentialDecay", "config": dict(
        ...     initial_learning_rate=0.1, decay_steps=10, decay_rate=0.5)}).decay_rate
        0.5
    """
    name = str(config.get("class_name"))
    if name not in _BY_NAME:
        raise unknown_name("learning rate schedule", name, _BY_NAME)
    return _BY_NAME[name].from_config(config.get("config", {}))


_BY_NAME: dict[str, type[LearningRateSchedule]] = {
    cls.__name__: cls
    for cls in (
        ExponentialDecay,
        InverseTimeDecay,
        PiecewiseConstantDecay,
        PolynomialDecay,
        CosineDecay,
        CosineDecayRestarts,
    )
}


def _positive(argument: str, steps: Any) -> Any:
    if not steps > 0:
        raise ConfigError(f"{argument} must be positive. Received: {steps!r}.")
    return steps


def _periods(step: Any, length: float, staircase: bool = False) -> jax.Array:
    """The step in periods of this length, whole ones if `staircase`."""
    periods = jnp.asarray(step, jnp.float32) / length
    return jnp.floor(periods) if staircase else periods
