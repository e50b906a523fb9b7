"""The public names of `kdist`, which finds them here when one is first asked for."""

from kdist import __version__, callbacks, checkpoint, data, errors, losses, metrics, optimizers
from kdist.config import Config
from kdist.distribution import DataParallel, initialize, is_main_process
from kdist.model import Model
from kdist.sequential import Sequential
from kdist.state import TrainState
from kdist.trainer import Trainer

__all__ = [
    "Config",
    "DataParallel",
    "Model",
    "Sequential",
    "TrainState",
    "Trainer",
    "__version__",
    "callbacks",
    "checkpoint",
    "data",
    "errors",
    "initialize",
    "is_main_process",
    "losses",
    "metrics",
    "optimizers",
]
