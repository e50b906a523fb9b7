"""Processes and meshes: who takes part in a run, and which device holds which part of an array."""

from kdist.distribution.alarm import Alarm
from kdist.distribution.mesh import BATCH_AXES, DataParallel, bytes_a_device, whole
from kdist.distribution.processes import (
    agree,
    agree_on_least,
    agree_on_most,
    check_agreement,
    gather,
    initialize,
    is_main_process,
)

__all__ = [
    "BATCH_AXES",
    "Alarm",
    "DataParallel",
    "agree",
    "agree_on_least",
    "agree_on_most",
    "bytes_a_device",
    "check_agreement",
    "gather",
    "initialize",
    "is_main_process",
    "whole",
]
