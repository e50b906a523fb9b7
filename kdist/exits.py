"""Exit codes of kdist beside 0, 1 (an error) and 2 (usage): what those who start a run decide by."""

PREEMPTED = 42
"""The run was preempted and saved: start it again to go on."""
HUNG = 43
"""The watchdog ended the process, in which nothing progressed any more."""
