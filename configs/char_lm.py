"""A character-level language model: a small Transformer that reads the modules of Python's own standard library.

kdist train configs/char_lm.py

Real text on every machine, nothing to download.  What a trained model writes:

    kdist.config.load("configs/char_lm.py").sample("RUN/weights", "def ")

Shapes: b rows, T characters, V characters in the alphabet, W the width.
"""

import dataclasses
import math
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import flax.linen as nn
import grain
import jax.numpy as jnp
import numpy as np

import kdist
from kdist.config import Data
from kdist.errors import ConfigError

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
"""The characters that the model knows, V of them; a character's id is its place."""
_IDS = np.full(128, ALPHABET.index("?"), np.uint8)
_IDS[[ord(character) for character in ALPHABET]] = np.arange(len(ALPHABET))


def encode(text: str) -> np.ndarray:
    """The ids ``[T]`` of a text, uint8; a tab is read as spaces, what is not in the alphabet as "?"."""
    return _IDS[np.frombuffer(text.expandtabs().encode("ascii", "replace"), np.uint8)]


def decode(ids: Iterable[int]) -> str:
    """The text of ids ``[T]``."""
    return "".join(ALPHABET[i] for i in ids)


def read_library(directory: str) -> np.ndarray:
    """The ids of all modules ``*.py`` of a directory, one after the other in an order that looks like chance.

    Raises:
        ConfigError: It has no modules.
    """
    paths = sorted(Path(directory).glob("*.py"))
    if not paths:
        raise ConfigError(f"There are no .py files in {directory}. Set `directory` to one that has some.")
    order = np.random.default_rng(0).permutation(len(paths))  # what is held out is then like the rest
    return encode("\n".join(paths[n].read_text(encoding="utf-8", errors="replace") for n in order))


class Windows:
    """A text cut into windows, by number: window i is ``text[i * length : (i + 1) * length + 1]``.

    The one character that two windows share is the last target of the first and the first input of the
    second, so that every character is read once and guessed once, up to a remainder shorter than a window.
    """

    def __init__(self, text: np.ndarray, length: int) -> None:
        self.text = text
        self.length = length

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.length

    def __getitem__(self, i: int) -> np.ndarray:
        return self.text[i * self.length : (i + 1) * self.length + 1]


@dataclasses.dataclass(frozen=True)
class NextCharacter(grain.transforms.Map):
    """Makes of a window ``[T + 1]`` its characters ``[T]`` and, as targets, the ones that follow them ``[T]``."""

    def map(self, element: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The inputs and the targets; these are int32, since they are labels."""
        return element[:-1], element[1:].astype(np.int32)


class Block(nn.Module):
    """Attention to what came before, then an MLP, each on normalised inputs and added to them."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x, train: bool):
        """Maps ``[b, T, W]`` to ``[b, T, W]``."""
        width = x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=not train)
        mask = nn.make_causal_mask(x[..., 0])
        y = nn.LayerNorm()(x)
        x = x + drop(nn.MultiHeadDotProductAttention(self.heads)(y, mask=mask))
        y = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x)))
        return x + drop(nn.Dense(width)(y))


class Transformer(nn.Module):
    """A decoder with learned positions."""

    window: int
    width: int
    layers: int
    heads: int
    dropout: float

    @nn.compact
    def __call__(self, ids, train: bool = False):
        """Maps ids ``[b, T]`` to logits ``[b, T, V]``, T at most the window."""
        positions = self.param("positions", nn.initializers.normal(0.02), (self.window, self.width))
        x = nn.Embed(len(ALPHABET), self.width, embedding_init=nn.initializers.normal(0.02))(ids.astype(jnp.int32))
        x = nn.Dropout(self.dropout, deterministic=not train)(x + positions[: ids.shape[1]])
        return nn.Dense(len(ALPHABET))(nn.LayerNorm()(self.blocks(x, train)))

    def blocks(self, x, train: bool):
        """Maps ``[b, T, W]`` to ``[b, T, W]`` by one block after the other."""
        for _ in range(self.layers):
            x = Block(self.heads, self.dropout)(x, train)
        return x


def bits_per_character(y_true, y_pred):
    """The bits ``[b, T]`` that it takes to tell the targets ``[b, T]``, given logits ``[b, T, V]``."""
    return kdist.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True) / math.log(2)


@dataclasses.dataclass(frozen=True)
class CharLM(kdist.Config):
    """The fields of the run."""

    name: str = "char_lm"
    epochs: int = 4
    batch_size: int = 32
    learning_rate: float | None = 4e-3
    """The highest learning rate: it is reached in a tenth of the run, and falls to 0."""
    directory: str = sysconfig.get_path("stdlib")
    """Whose modules are read; those of packages inside it are not."""
    window: int = 64
    """T, the characters of a row: how far back the model sees."""
    width: int = 96
    """W, the numbers that stand for a character."""
    layers: int = 2
    """How many blocks."""
    heads: int = 4
    """Attention heads of a block."""
    dropout: float = 0.0
    """The fraction of activations dropped in training."""
    steps: int = 225
    """Steps of an epoch; the epochs go through the text one after the other."""
    held_out: int = 200_000
    """How many characters, at the end of the text, are for validation."""

    def make_module(self):
        """The network."""
        return Transformer(self.window, self.width, self.layers, self.heads, self.dropout)

    def make_loss(self):
        """Cross-entropy of the next character, from logits."""
        return kdist.losses.SparseCategoricalCrossentropy(from_logits=True)

    def make_metrics(self):
        """Bits per character: log2(96) = 6.6 for one that guesses."""
        return [bits_per_character]

    def make_optimizer(self):
        """Adam, with a learning rate that rises and falls."""
        steps = self.epochs * self.steps
        rate = kdist.optimizers.schedules.CosineDecay(
            0.0, decay_steps=steps - steps // 10, warmup_target=self.learning_rate, warmup_steps=steps // 10
        )
        return kdist.optimizers.Adam(rate, global_clipnorm=1.0)

    def make_data(self):
        """The library's text as windows; the end of it is for validation."""
        text = read_library(self.directory)
        return Data(
            self._loader(text[: -self.held_out], shuffle=self.shuffle, steps=self.steps),
            validation=self._loader(text[-self.held_out :], shuffle=False),
        )

    def _loader(self, text, **order):
        windows = Windows(text, self.window)
        return kdist.data.from_source(
            windows, batch_size=self.batch_size, seed=self.seed, transforms=[NextCharacter()], **order
        )

    def sample(self, weights, prompt, length=300, temperature=0.8, seed=0):
        """Text that goes on from a prompt, by a trained model.

        Args:
            weights: Where the weights of a run with these fields are.
            prompt: How the text begins, a character or more.
            length: How many characters to add.
            temperature: Below 1, likely characters become likelier.
            seed: What characters are drawn from.

        Returns:
            The prompt and what follows.
        """
        model = self.make_model()
        model.build(np.zeros((1, self.window), np.uint8))
        model.load_weights(weights)
        rng = np.random.default_rng(seed)
        ids = encode(prompt).tolist()
        for _ in range(length):
            seen = ids[-self.window :]
            row = seen + [0] * (self.window - len(seen))  # always whole, for one program; what follows is not seen
            logits = model.predict_on_batch(np.array([row], np.uint8))[0, len(seen) - 1]
            ids.append(int(np.argmax(logits / temperature + rng.gumbel(size=logits.shape))))
        return decode(ids)


def config() -> kdist.Config:
    """The run as it stands in this file."""
    return CharLM()
