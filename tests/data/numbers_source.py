"""Rows that know their number, and transforms of them, which worker processes can be sent: they are in a module."""

import os

import grain
import numpy as np

ROWS = 23
FEATURES = 3
X = np.arange(ROWS * FEATURES, dtype=np.float32).reshape(ROWS, FEATURES) / 32
Y = np.cos(np.arange(ROWS, dtype=np.float32))[:, None]


class Rows:
    """The rows of `X` and `Y` by number, as a torch Dataset has them."""

    def __init__(self, length=ROWS):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, n):
        return X[n % ROWS], Y[n % ROWS]


class Broken(Rows):
    """One row cannot be read."""

    def __init__(self, length=ROWS, at=7):
        super().__init__(length)
        self.at = at

    def __getitem__(self, n):
        if n == self.at:
            raise KeyError("the disk is gone")
        return super().__getitem__(n)


class Deadly(Broken):
    """Reading one row kills the process."""

    def __getitem__(self, n):
        if n == self.at:
            os._exit(3)
        return super().__getitem__(n)


class Double(grain.transforms.Map):
    """Twice the inputs."""

    def map(self, element):
        return element[0] * 2, element[1]


class Position(grain.transforms.MapWithIndex):
    """The row's number as the target."""

    def map_with_index(self, index, element):
        return element[0], np.float32([index])


class Noise(grain.transforms.RandomMap):
    """A random number as the first input."""

    def random_map(self, element, rng):
        return np.append(rng.uniform(), element[0][1:]).astype(np.float32), element[1]


class EveryThird(grain.transforms.Filter):
    """Leaves out two of three rows."""

    def filter(self, element):
        return round(float(element[0][0]) * 32) // FEATURES % 3 == 0


class Nothing(grain.transforms.Filter):
    """Keeps no row."""

    def filter(self, element):
        return False


def negative(row):
    """A plain function of a row."""
    return -row[0], row[1]
