"""The table that `Model.summary` prints."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from kdist.distribution import bytes_a_device
from kdist.modules import Layer
from kdist.state import TrainState
from kdist.typing import PyTree


def summary_table(name: str, layers: Sequence[Layer], state: TrainState) -> str:
    """Layers with output shape, parameters, and bytes that each device holds of them.

    Args:
        name: The model's name.
        layers: Its layers.
        state: Its state, whose parameters are keyed by layer.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Model: {name}", title_justify="left", title_style="bold")
    table.add_column("layer")
    table.add_column("output shape")
    table.add_column("parameters", justify="right")
    table.add_column("bytes a device", justify="right")
    listed: list[PyTree] = []
    for layer in layers:
        params = _subtree(state.params, layer.name)
        listed.append(params)
        title = f"{layer.name} ({layer.kind})" if layer.name else layer.kind
        table.add_row(title, _shape(layer.output), f"{_count(params):,}", f"{bytes_a_device(params):,}")
    other, other_bytes = (of(state.params) - of(listed) for of in (_count, bytes_a_device))
    if other > 0:
        table.add_row("(of the model itself)", "", f"{other:,}", f"{other_bytes:,}")

    held = {
        "parameters": state.params,
        "model state": state.model_state,
        "optimizer state": state.opt_state,
    }
    lines = [
        f"{title}: {_count(tree):,} in {bytes_a_device(tree):,} bytes a device"
        for title, tree in held.items()
        if _count(tree)
    ]
    console = Console(width=100, record=False, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
        console.print("\n".join(lines), highlight=False)
    return capture.get().rstrip()


def _subtree(params: PyTree, name: str) -> PyTree:
    if not name:
        return params
    for part in name.split("/"):
        if not isinstance(params, dict):
            return {}
        params = params.get(part, params.get(int(part)) if part.isdigit() else None) or {}
    return params


def _count(tree: PyTree) -> int:
    return sum(a.size for a in jax.tree.leaves(tree))


def _shape(output: PyTree) -> str:
    if output is None:
        return "not called"
    shapes = [f"({', '.join(['rows', *map(str, a.shape[1:])])})" for a in jax.tree.leaves(output)]
    return ", ".join(shapes)
