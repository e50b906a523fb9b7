"""A Transformer of 1.3 billion parameters on the text of `char_lm`: to be planned anywhere, and trained on a TPU slice.

kdist plan configs/transformer_1b.py --topology v5e:16x16 --zero-stage 1
kdist train configs/transformer_1b.py

Its layers are one `nn.scan`, so that it compiles as fast as one layer and ZeRO 3 gathers a layer at a time; each is
rematerialised, so that what is kept for the backward pass is a layer's input.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
from char_lm import Block, CharLM, Transformer

import kdist


class Layer(nn.Module):
    """A block, as `nn.scan` calls it."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x, train: bool):
        """Maps ``[b, T, W]`` to ``[b, T, W]`` and nothing."""
        return Block(self.heads, self.dropout)(x, train), None


class ScannedTransformer(Transformer):
    """The decoder, whose blocks are a stack."""

    def blocks(self, x, train: bool):
        """Maps ``[b, T, W]`` to ``[b, T, W]`` by the blocks, whose parameters lie in arrays ``[layers, ...]``."""
        stack = nn.scan(
            nn.remat(Layer, prevent_cse=False, static_argnums=(2,)),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=self.layers,
        )
        x, _ = stack(self.heads, self.dropout)(x, train)
        return x


@dataclasses.dataclass(frozen=True)
class Transformer1B(CharLM):
    """The fields of the run."""

    name: str = "transformer_1b"
    batch_size: int = 512
    learning_rate: float | None = 2e-4
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "mixed_bfloat16"
    window: int = 2048
    width: int = 2048
    layers: int = 26
    heads: int = 16

    def make_module(self):
        """The network."""
        return ScannedTransformer(self.window, self.width, self.layers, self.heads, self.dropout)


def config() -> kdist.Config:
    """The run as it stands in this file."""
    return Transformer1B()
