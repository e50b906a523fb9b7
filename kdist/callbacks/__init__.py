"""Callbacks: what happens between executions, on the host."""

from kdist.callbacks.backup import BackupAndRestore
from kdist.callbacks.base import Callback
from kdist.callbacks.checkpoints import ModelCheckpoint, OrbaxCheckpoint
from kdist.callbacks.early_stopping import EarlyStopping
from kdist.callbacks.ema import SwapEMAWeights
from kdist.callbacks.history import History
from kdist.callbacks.lambdas import LambdaCallback
from kdist.callbacks.list import CallbackList
from kdist.callbacks.loggers import CSVLogger, JSONLLogger
from kdist.callbacks.monitors import MonitorCallback
from kdist.callbacks.nans import TerminateOnNaN
from kdist.callbacks.profiler import Profiler
from kdist.callbacks.progress import ProgbarLogger, ProgressBar
from kdist.callbacks.rates import LearningRateScheduler, ReduceLROnPlateau
from kdist.callbacks.remote import RemoteMonitor
from kdist.callbacks.tensorboard import TensorBoard

__all__ = [
    "BackupAndRestore",
    "CSVLogger",
    "Callback",
    "CallbackList",
    "EarlyStopping",
    "History",
    "JSONLLogger",
    "LambdaCallback",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "MonitorCallback",
    "OrbaxCheckpoint",
    "ProgbarLogger",
    "Profiler",
    "ProgressBar",
    "ReduceLROnPlateau",
    "RemoteMonitor",
    "SwapEMAWeights",
    "TensorBoard",
    "TerminateOnNaN",
]
