"""Optimizers that are not of Adam's kind: Keras's names, arguments and defaults over the rules of optax.

To add one: its class here, with `keras_signature` and `rule`, and its name in ``__init__.py``.
"""

from __future__ import annotations

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax

from kdist.errors import ConfigError
from kdist.optimizers.arguments import CommonArguments, LearningRate, is_number, keras_signature
from kdist.optimizers.base import Optimizer
from kdist.optimizers.ftrl import ftrl


class SGD(Optimizer):
    """Gradient descent, with momentum of Keras's kind: the rate acts on what enters the buffer.

    Args:
        learning_rate: The rate; 0.01 by default.
        momentum: How much of the last step is taken again, in [0, 1]; 0.0 by default.
        nesterov: Whether to look ahead along the momentum; False by default.
        weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name: As in `Optimizer`.

    Raises:
        ConfigError: An argument is out of its range.

    Example:
        >>> SGD(0.1, momentum=0.9, clipnorm=1.0)
        <SGD 'sgd'>
    """

    @keras_signature
    def __init__(
        self,
        learning_rate: LearningRate = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(learning_rate, **common)
        if not is_number(momentum) or not 0 <= momentum <= 1:
            raise ConfigError(f"momentum must lie in [0, 1]. Received: {momentum!r}.")
        self.momentum, self.nesterov = momentum, nesterov

    def rule(self, learning_rate: Any) -> optax.GradientTransformation:
        """The rate, then `optax.trace`: in this order, as in Keras, also while the rate changes."""
        descend = optax.scale_by_learning_rate(learning_rate)
        return optax.chain(descend, optax.trace(self.momentum, self.nesterov)) if self.momentum else descend


class RMSprop(Optimizer):
    """`optax.rmsprop`, which is Keras's.

    Args:
        learning_rate: The rate; 0.001 by default.
        rho: Decay of the mean square of the gradients; 0.9 by default.
        momentum: How much of the last step is taken again; 0.0 by default.
        epsilon: Added under the root; 1e-7 by default.
        centered: Whether the mean square is that of the gradients' deviations; False by default.
        weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name: As in `Optimizer`.

    Example:
        >>> RMSprop(1e-3, rho=0.95).rho
        0.95
    """

    @keras_signature
    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        centered: bool = False,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(learning_rate, **common)
        self.rho, self.momentum, self.epsilon, self.centered = rho, momentum, epsilon, centered

    def rule(self, learning_rate: Any) -> optax.GradientTransformation:
        """`optax.rmsprop`."""
        momentum = self.momentum or None
        return optax.rmsprop(learning_rate, self.rho, self.epsilon, centered=self.centered, momentum=momentum)


class Adadelta(Optimizer):
    """`optax.adadelta`, which is Keras's.

    Args:
        learning_rate: The rate; 0.001 by default.
        rho: Decay of the two mean squares, of gradients and of steps; 0.95 by default.
        epsilon: Added under both roots; 1e-7 by default.
        weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name: As in `Optimizer`.

    Example:
        >>> Adadelta(1.0).rho
        0.95
    """

    @keras_signature
    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        rho: float = 0.95,
        epsilon: float = 1e-7,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(learning_rate, **common)
        self.rho, self.epsilon = rho, epsilon

    def rule(self, learning_rate: Any) -> optax.GradientTransformation:
        """`optax.adadelta` without its decay."""
        scaled = optax.scale_by_adadelta(self.rho, self.epsilon)
        return optax.chain(scaled, optax.scale_by_learning_rate(learning_rate))


class Adagrad(Optimizer):
    """`optax.adagrad`, which is Keras's.

    Args:
        learning_rate: The rate; 0.001 by default.
        initial_accumulator_value: The sums of squared gradients at the start; 0.1 by default.
        epsilon: Added under the root; 1e-7 by default.
        weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name: As in `Optimizer`.

    Example:
        >>> Adagrad(0.1).initial_accumulator_value
        0.1
    """

    @keras_signature
    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(learning_rate, **common)
        self.initial_accumulator_value, self.epsilon = initial_accumulator_value, epsilon

    def rule(self, learning_rate: Any) -> optax.GradientTransformation:
        """`optax.adagrad`."""
        return optax.adagrad(learning_rate, self.initial_accumulator_value, self.epsilon)


class Adafactor(Optimizer):
    """`optax.adafactor`, factored at every size; the relative rate is at most ``1 / sqrt(t)`` at step t.

    Of a parameter of three dimensions and more, optax factors the two largest, Keras the last two: the
    two agree where the last two are the largest, and on vectors and matrices.

    Args:
        learning_rate: The rate, relative to the size of a parameter; 0.001 by default.
        beta_2_decay: The exponent of the decay of the mean squares, negative; -0.8 by default.
        epsilon_1: Added to the squares of the gradients; 1e-30 by default.
        epsilon_2: The least size of a parameter; 0.001 by default.
        clip_threshold: Updates with a larger root mean square are clipped to it; 1.0 by default.
        relative_step: Without effect, as in Keras's code, where the rate is limited to ``1 / sqrt(t)`` anyway; True by
            default.
        weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name: As in `Optimizer`.

    Example:
        >>> Adafactor(0.01).clip_threshold
        1.0
    """

    @keras_signature
    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_2_decay: float = -0.8,
        epsilon_1: float = 1e-30,
        epsilon_2: float = 1e-3,
        clip_threshold: float = 1.0,
        relative_step: bool = True,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(learning_rate, **common)
        self.beta_2_decay, self.epsilon_1, self.epsilon_2 = beta_2_decay, epsilon_1, epsilon_2
        self.clip_threshold, self.relative_step = clip_threshold, relative_step

    def rule(self, learning_rate: Any) -> optax.GradientTransformation:
        """The parts of `optax.adafactor`, in Keras's order."""

        def limited(count: Any) -> jax.Array:
            return jnp.minimum(learning_rate, jax.lax.rsqrt(count + 1.0))

        return optax.chain(
            optax.scale_by_factored_rms(
                min_dim_size_to_factor=1, decay_rate=-self.beta_2_decay, epsilon=self.epsilon_1
            ),
            optax.clip_by_block_rms(self.clip_threshold),
            optax.scale_by_schedule(limited),
            optax.scale_by_param_block_rms(self.epsilon_2),
            optax.scale(-1.0),
        )


class Ftrl(Optimizer):
    """Follow the regularized leader (McMahan et al., 2013), for wide and sparse linear models.

    Args:
        learning_rate: The rate; it divides, so it cannot be 0; 0.001 by default.
        learning_rate_power: What the sums of squared gradients are raised to in the rate, at most 0; -0.5 by default.
        initial_accumulator_value: These sums at the start, at least 0; 0.1 by default.
        l1_regularization_strength: Strength of the L1 penalty, which makes parameters exactly 0; 0.0 by default.
        l2_regularization_strength: Strength of the L2 penalty; 0.0 by default.
        l2_shrinkage_regularization_strength: Strength of an L2 penalty on the loss itself; 0.0 by default.
        beta: Added to the root of the sums; 0.0 by default.
        weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name: As in `Optimizer`.

    Raises:
        ConfigError: A strength or the initial value is negative, or the power positive.

    Example:
        >>> Ftrl(0.1, l1_regularization_strength=0.01).learning_rate_power
        -0.5
    """

    @keras_signature
    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        learning_rate_power: float = -0.5,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: float = 0.0,
        l2_regularization_strength: float = 0.0,
        l2_shrinkage_regularization_strength: float = 0.0,
        beta: float = 0.0,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(learning_rate, **common)
        self.learning_rate_power = learning_rate_power
        self.initial_accumulator_value = initial_accumulator_value
        self.l1_regularization_strength = l1_regularization_strength
        self.l2_regularization_strength = l2_regularization_strength
        self.l2_shrinkage_regularization_strength = l2_shrinkage_regularization_strength
        self.beta = beta
        if not is_number(learning_rate_power) or learning_rate_power > 0:
            raise ConfigError(f"learning_rate_power must be negative or 0. Received: {learning_rate_power!r}.")
        for argument in (
            "initial_accumulator_value",
            "l1_regularization_strength",
            "l2_regularization_strength",
            "l2_shrinkage_regularization_strength",
        ):
            value = getattr(self, argument)
            if not is_number(value) or value < 0:
                raise ConfigError(f"{argument} must be positive or 0. Received: {value!r}.")

    def rule(self, learning_rate: Any) -> optax.GradientTransformation:
        """`ftrl`, of kdist itself."""
        return ftrl(
            learning_rate,
            power=self.learning_rate_power,
            initial_accumulator_value=self.initial_accumulator_value,
            l1=self.l1_regularization_strength,
            l2=self.l2_regularization_strength,
            l2_shrinkage=self.l2_shrinkage_regularization_strength,
            beta=self.beta,
        )


class Lion(Optimizer):
    """`optax.lion`, with no decay unless asked for: then it is Keras's.

    Args:
        learning_rate: The rate, which is the size of every step; 0.001 by default.
        beta_1: How much of the mean of the gradients is in the direction, in (0, 1]; 0.9 by default.
        beta_2: Decay of that mean; 0.99 by default.
        weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name: As in `Optimizer`.

    Raises:
        ConfigError: An argument is out of its range.

    Example:
        >>> Lion(1e-4).beta_2
        0.99
    """

    @keras_signature
    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(learning_rate, **common)
        if not is_number(beta_1) or not 0 < beta_1 <= 1:
            raise ConfigError(f"beta_1 must lie in (0, 1]. Received: {beta_1!r}.")
        self.beta_1, self.beta_2 = beta_1, beta_2

    def rule(self, learning_rate: Any) -> optax.GradientTransformation:
        """`optax.lion` without its decay."""
        scaled = optax.scale_by_lion(self.beta_1, self.beta_2)
        return optax.chain(scaled, optax.scale_by_learning_rate(learning_rate))
