"""Callbacks: what happens between executions, on the host."""

from kdist.callbacks.base import Callback, CallbackList
from kdist.callbacks.history import History
from kdist.callbacks.loggers import JSONLLogger
from kdist.callbacks.progress import ProgbarLogger, ProgressBar

__all__ = ["Callback", "CallbackList", "History", "JSONLLogger", "ProgbarLogger", "ProgressBar"]
