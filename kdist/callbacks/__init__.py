"""Callbacks: what happens between executions, on the host."""

from kdist.callbacks.base import Callback
from kdist.callbacks.history import History
from kdist.callbacks.list import CallbackList
from kdist.callbacks.loggers import JSONLLogger
from kdist.callbacks.progress import ProgbarLogger, ProgressBar

__all__ = ["Callback", "CallbackList", "History", "JSONLLogger", "ProgbarLogger", "ProgressBar"]
