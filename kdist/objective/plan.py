"""The plan: losses and metrics as `compile` was given them, every name resolved, nothing known of shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kdist import losses, metrics
from kdist.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a model was compiled with, names resolved.

    Attributes:
        loss: A Loss (or a name that shapes resolve), or a list, tuple or dict of them by output.
        loss_weights: A number, or a list, tuple or dict of numbers by output, or None.
        metrics: Metrics, or lists, tuples or dicts of them by output.
        weighted_metrics: Alike, evaluated with the sample weights.
        sample_weight_mode: None, "temporal", or a list or dict of these by output.
    """

    loss: Any = None
    loss_weights: Any = None
    metrics: Any = ()
    weighted_metrics: Any = ()
    sample_weight_mode: Any = None

    @classmethod
    def of(
        cls,
        loss: Any,
        loss_weights: Any = None,
        metrics_: Any = None,
        weighted_metrics: Any = None,
        sample_weight_mode: Any = None,
    ) -> Plan:
        """Resolves every name.

        Raises:
            ConfigError: A name is unknown or an argument has a wrong type.
        """
        _check_loss_weights(loss_weights)
        for name, value in (("metrics", metrics_), ("weighted_metrics", weighted_metrics)):
            if value is not None and not isinstance(value, (list, tuple, Mapping)):
                raise ConfigError(f"{name} must be a list, a tuple or a dict. Received: {value!r}.")
            if isinstance(value, (list, tuple)) and list(value) == [None]:
                raise ConfigError(f"Expected a metric in {name}. Received: None. Leave it out.")
        if any(mode not in (None, "temporal") for mode in leaves(sample_weight_mode)):
            raise ConfigError(
                "sample_weight_mode must be None or 'temporal', or a list or dict of these by output. Received: "
                f"{sample_weight_mode!r}."
            )
        return cls(
            _map_leaves(losses.get, loss),
            loss_weights,
            _map_leaves(_metric, metrics_ or ()),
            _map_leaves(_metric, weighted_metrics or ()),
            sample_weight_mode,
        )

    @property
    def needs_targets(self) -> bool:
        """Whether there is a loss or a metric, which compare with something."""
        return any(leaf is not None for leaf in leaves([self.loss, self.metrics, self.weighted_metrics]))

    @property
    def takes_labels(self) -> bool:
        """Whether the targets are integer labels for the only loss."""
        return getattr(self.loss, "class_axis", None) is not None


def _check_loss_weights(value: Any) -> None:
    entries = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else [value]
    for entry in entries:
        if entry is not None and (isinstance(entry, bool) or not isinstance(entry, (int, float, np.number))):
            raise ConfigError(
                f"loss_weights, the third argument of compile, must be a number or a list, tuple or dict of numbers. "
                f"Received: {value!r}. Pass metrics by name: compile(optimizer, loss, metrics=[...])."
            )


def _metric(identifier: Any) -> Any:
    """A metric, or None for an output that has none."""
    return None if identifier is None else metrics.get(identifier)


def _map_leaves(fn: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {k: _map_leaves(fn, v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_map_leaves(fn, v) for v in tree]
    return fn(tree)


def leaves(tree: Any) -> list[Any]:
    """What lists, tuples and dicts hold in the end."""
    if isinstance(tree, (list, tuple, Mapping)):
        return [leaf for value in (tree.values() if isinstance(tree, Mapping) else tree) for leaf in leaves(value)]
    return [tree]
