"""Processes and meshes: who takes part in a run, and which device holds which part of an array."""

from kdist.distribution.agreement import agree, agree_on_least, check_agreement, gather, is_main_process
from kdist.distribution.alarm import Alarm
from kdist.distribution.mesh import BATCH_AXES, DataParallel, bytes_a_device, whole
from kdist.distribution.processes import initialize

__all__ = [
    "BATCH_AXES",
    "Alarm",
    "DataParallel",
    "agree",
    "agree_on_least",
    "bytes_a_device",
    "check_agreement",
    "gather",
    "initialize",
    "is_main_process",
    "whole",
]
