"""The two optimizers that are built of `optax.contrib`: Muon and ScheduleFreeAdamW."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from kdist.errors import ConfigError
from kdist.optimizers.arguments import (
    CommonArguments,
    CommonExceptDecay,
    LearningRate,
    is_number,
    keras_signature,
    strings,
)
from kdist.optimizers.base import Optimizer
from kdist.optimizers.transforms import path_name
from kdist.typing import PyTree


class Muon(Optimizer):
    """Orthogonalised momentum for matrices, by `optax.contrib`, and `optax.adam` for everything else.

    The momentum is Keras's (a sum, and not optax's bias-corrected mean), so matrices take Keras's steps.
    What Adam has differs from Keras by its epsilon, as in `Adam`.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).

    Args:
        learning_rate: The rate; 0.001 by default.
        adam_beta_1: Adam's decay of the mean of the gradients; 0.9 by default.
        adam_beta_2: Adam's decay of the mean of their squares; 0.999 by default.
        adam_weight_decay: The weight decay of what Adam has; None for none; 0.004 by default.
        epsilon: Adam's epsilon; 1e-7 by default.
        weight_decay: The weight decay of the matrices; None for none; 0.004 by default.
        exclude_layers: Regular expressions; a matrix with one of them anywhere in its path goes to Adam; none by
            default.
        exclude_embeddings: Whether one with "embedding" in its path does; True by default.
        muon_a: Coefficient of the Newton-Schulz iteration, of X; 3.4445 by default.
        muon_b: Of ``(X X') X``; -4.775 by default.
        muon_c: Of ``(X X')^2 X``; 2.0315 by default.
        adam_lr_ratio: Adam's rate as a multiple of the rate; 1 by default.
        momentum: How much of the sum of gradients stays; 0.95 by default.
        ns_steps: The number of iterations; 5 by default.
        nesterov: Whether to look ahead along the momentum; True by default.
        rms_rate: Scales a matrix's step by this times the root of its longer side; None for no scaling; 0.2 by default.
        clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name: As in `Optimizer`.

    Example:
        >>> Muon(1e-3, exclude_layers=["output"]).momentum
        0.95
    """

    @keras_signature
    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        adam_beta_1: float = 0.9,
        adam_beta_2: float = 0.999,
        adam_weight_decay: float | None = 0.004,
        epsilon: float = 1e-7,
        weight_decay: float | None = 0.004,
        *,
        exclude_layers: Sequence[str] | None = None,
        exclude_embeddings: bool = True,
        muon_a: float = 3.4445,
        muon_b: float = -4.7750,
        muon_c: float = 2.0315,
        adam_lr_ratio: float = 1,
        momentum: float = 0.95,
        ns_steps: int = 5,
        nesterov: bool = True,
        rms_rate: float | None = 0.2,
        **common: Unpack[CommonExceptDecay],
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **common)
        self.adam_beta_1, self.adam_beta_2 = adam_beta_1, adam_beta_2
        self.adam_weight_decay, self.epsilon = adam_weight_decay, epsilon
        self.exclude_layers = strings("exclude_layers", exclude_layers)
        self.exclude_embeddings = exclude_embeddings
        self.muon_a, self.muon_b, self.muon_c = muon_a, muon_b, muon_c
        self.adam_lr_ratio, self.momentum, self.ns_steps = adam_lr_ratio, momentum, ns_steps
        self.nesterov, self.rms_rate = nesterov, rms_rate

    def rule(self, learning_rate: Any) -> optax.GradientTransformation:
        """`optax.trace`, an orthogonalisation and a scale for matrices; `optax.adam` for the rest."""
        coefficients = (self.muon_a, self.muon_b, self.muon_c)
        # With beta 0 its momentum is the gradient itself: what is left of it is the orthogonalisation.
        newton_schulz = contrib.scale_by_muon(
            coefficients, self.ns_steps, beta=0.0, eps=1e-7, nesterov=False, weight_dimension_numbers=_as_they_are
        )
        matrix = optax.chain(
            optax.trace(self.momentum, self.nesterov),
            optax.stateless(lambda g, _: newton_schulz.update(g, newton_schulz.init(g))[0]),
            optax.stateless_with_tree_map(lambda g, _: g * self._scale(g.shape)),
            optax.scale_by_learning_rate(learning_rate),
        )
        rate = learning_rate * self.adam_lr_ratio
        adam = optax.adam(rate, self.adam_beta_1, self.adam_beta_2, self.epsilon)
        return optax.partition({"matrix": matrix, "adam": adam}, self._labels)

    def decay_of(self, path: str, param: jax.Array) -> float | None:
        """That of the part which has the parameter."""
        return self.weight_decay if self._is_matrix(path, param) else self.adam_weight_decay

    def _decays(self) -> bool:
        return bool(self.weight_decay or self.adam_weight_decay)

    def _labels(self, params: PyTree) -> PyTree:
        def label(path: Any, p: jax.Array) -> str:
            return "matrix" if self._is_matrix(path_name(path), p) else "adam"

        return jax.tree_util.tree_map_with_path(label, params)

    def _is_matrix(self, path: str, param: jax.Array) -> bool:
        if param.ndim != 2 or (self.exclude_embeddings and "embedding" in path.lower()):
            return False
        return not any(re.search(pattern, path) for pattern in self.exclude_layers)

    def _scale(self, shape: tuple[int, ...]) -> float:
        return 1.0 if self.rms_rate is None else math.sqrt(max(shape)) * self.rms_rate


def _as_they_are(matrices: PyTree) -> PyTree:
    return jax.tree.map(lambda _: contrib.MuonDimensionNumbers(), matrices)


class ScheduleFreeAdamW(Optimizer):
    """`optax.contrib.schedule_free` around Adam without momentum, with every step of the same weight, as in Keras.

    Source: Defazio et al., "The Road Less Scheduled" (2024).

    Args:
        learning_rate: The rate; 0.0025 by default.
        beta_1: How much of the average is in the parameters that gradients are taken at, in (0, 1]; 0.9 by default.
        beta_2: Decay of the mean square of the gradients; 0.999 by default.
        epsilon: Added to its bias-corrected root; 1e-8 by default.
        warmup_steps: Updates in which the rate grows from 0 in a straight line; 0 by default.
        weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name: As in `Optimizer`.

    Raises:
        ConfigError: An argument is out of its range.

    Example:
        >>> ScheduleFreeAdamW(warmup_steps=100).learning_rate
        0.0025
    """

    @keras_signature
    def __init__(
        self,
        learning_rate: LearningRate = 0.0025,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        warmup_steps: int = 0,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(learning_rate, **common)
        if not is_number(beta_1) or not 0 < beta_1 <= 1:
            raise ConfigError(
                f"beta_1 must lie in (0, 1]: the average is found by dividing by it. Received: {beta_1!r}."
            )
        self.beta_1, self.beta_2, self.epsilon, self.warmup_steps = beta_1, beta_2, epsilon, warmup_steps

    def rule(self, learning_rate: Any) -> optax.GradientTransformation:
        """`optax.contrib.schedule_free_adamw`, taken apart for the warm-up and the weights of Keras."""
        parts = [optax.scale_by_rms(self.beta_2, self.epsilon, eps_in_sqrt=False, bias_correction=True)]
        if self.warmup_steps > 0:
            parts.append(optax.scale_by_schedule(lambda count: jnp.minimum((count + 1.0) / self.warmup_steps, 1.0)))
        descent = optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))
        return contrib.schedule_free(descent, learning_rate, self.beta_1, weight_lr_power=0.0)
