"""Adam and its kin: Keras's names, arguments and defaults over the rules of optax."""

from __future__ import annotations

from typing import Any, Unpack

import jax.numpy as jnp
import optax

from kdist.errors import ConfigError
from kdist.optimizers.arguments import CommonArguments, CommonExceptDecay, LearningRate, keras_signature
from kdist.optimizers.base import Optimizer


class Adam(Optimizer):
    """`optax.adam`.  Epsilon is added to the bias-corrected root; in Keras, to the uncorrected one.

    So the two differ where gradients are small: at the first step, one of 30 epsilon moves a parameter half
    as far in Keras.  With `amsgrad` they agree.

    Args:
        learning_rate: The rate; 0.001 by default.
        beta_1: Decay of the mean of the gradients; 0.9 by default.
        beta_2: Decay of the mean of their squares; 0.999 by default.
        epsilon: Added to the root; 1e-7 by default.
        amsgrad: Whether to divide by the largest mean square so far; False by default.
        weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name: As in `Optimizer`.

    Example:
        >>> Adam(learning_rate=3e-4, beta_2=0.98).learning_rate
        0.0003
    """

    @keras_signature
    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(learning_rate, **common)
        self.beta_1, self.beta_2, self.epsilon, self.amsgrad = beta_1, beta_2, epsilon, amsgrad

    def rule(self, learning_rate: Any) -> optax.GradientTransformation:
        """`optax.adam`, or its AMSGrad with the bias correction where Keras has it: after the maximum."""
        if not self.amsgrad:
            return optax.adam(learning_rate, self.beta_1, self.beta_2, self.epsilon)
        return optax.chain(
            optax.scale_by_amsgrad(self.beta_1, self.beta_2, self.epsilon, bias_correction_nu=False),
            optax.scale_by_schedule(lambda count: jnp.sqrt(1 - self.beta_2 ** (count + 1.0))),
            optax.scale_by_learning_rate(learning_rate),
        )


class AdamW(Adam):
    """Adam with decoupled weight decay of every parameter, biases included, as in Keras.

    Args:
        learning_rate: The rate; 0.001 by default.
        weight_decay: As in `Optimizer`, but not None.
        beta_1: Decay of the mean of the gradients; 0.9 by default.
        beta_2: Decay of the mean of their squares; 0.999 by default.
        epsilon: Added to the bias-corrected root; 1e-7 by default.
        amsgrad: Whether to divide by the largest mean square so far; False by default.
        clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name: As in `Optimizer`.

    Raises:
        ConfigError: `weight_decay` is None, or an argument is out of its range.

    Example:
        >>> adamw = AdamW(1e-3, weight_decay=0.01)
        >>> adamw.exclude_from_weight_decay(var_names=["bias"])
    """

    @keras_signature
    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        **common: Unpack[CommonExceptDecay],
    ) -> None:
        if weight_decay is None:
            raise ConfigError("AdamW needs a weight_decay. Received: None. Use Adam for none.")
        super().__init__(learning_rate, beta_1, beta_2, epsilon, amsgrad, weight_decay=weight_decay, **common)


class Adamax(Optimizer):
    """`optax.adamax`.  Epsilon is added inside the running maximum; in Keras, behind it.

    Args:
        learning_rate: The rate; 0.001 by default.
        beta_1: Decay of the mean of the gradients; 0.9 by default.
        beta_2: Decay of their maximum; 0.999 by default.
        epsilon: Keeps the divisor from 0; 1e-7 by default.
        weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name: As in `Optimizer`.

    Example:
        >>> Adamax(2e-3).learning_rate
        0.002
    """

    @keras_signature
    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(learning_rate, **common)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def rule(self, learning_rate: Any) -> optax.GradientTransformation:
        """`optax.adamax`."""
        return optax.adamax(learning_rate, self.beta_1, self.beta_2, self.epsilon)


class Nadam(Optimizer):
    """`optax.nadam`, whose momentum is `beta_1` from the start.

    In Keras it grows to it, ``beta_1 * (1 - 0.96 ** t / 2)`` at step t, so that the two take different
    first steps (optax's is 1.39 times as long) and the same ones in the long run.

    Args:
        learning_rate: The rate; 0.001 by default.
        beta_1: Decay of the mean of the gradients; 0.9 by default.
        beta_2: Decay of the mean of their squares; 0.999 by default.
        epsilon: Added to the bias-corrected root, as in Keras; 1e-7 by default.
        weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name: As in `Optimizer`.

    Example:
        >>> Nadam(2e-3).learning_rate
        0.002
    """

    @keras_signature
    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(learning_rate, **common)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def rule(self, learning_rate: Any) -> optax.GradientTransformation:
        """`optax.nadam`."""
        return optax.nadam(learning_rate, self.beta_1, self.beta_2, self.epsilon)


class Lamb(Optimizer):
    """`optax.lamb`, which is Keras's: the decay comes first, outside the trust ratio.

    Args:
        learning_rate: The rate; 0.001 by default.
        beta_1: Decay of the mean of the gradients; 0.9 by default.
        beta_2: Decay of the mean of their squares; 0.999 by default.
        epsilon: Added to the bias-corrected root; 1e-7 by default.
        weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name: As in `Optimizer`.

    Example:
        >>> Lamb(1e-2, weight_decay=0.01).weight_decay
        0.01
    """

    @keras_signature
    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(learning_rate, **common)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def rule(self, learning_rate: Any) -> optax.GradientTransformation:
        """`optax.lamb` without its decay."""
        return optax.chain(
            optax.scale_by_adam(self.beta_1, self.beta_2, self.epsilon),
            optax.scale_by_trust_ratio(),
            optax.scale_by_learning_rate(learning_rate),
        )
