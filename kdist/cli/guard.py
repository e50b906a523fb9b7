"""What `kdist launch` starts in place of each command: it runs the command, and ends it when the launcher is gone.

Usage: guard.py PIPE COMMAND...

PIPE is the reading end of a pipe whose other end nobody but the launcher holds: it ends when the launcher does, however
that came about.  The guard leads a session of its own, with the command and what that starts in it, so that killing its
group leaves nothing behind.  It needs nothing but the standard library, and so is there at once.
"""

import os
import signal
import subprocess
import sys
import threading


def main() -> None:
    """Runs the command, and exits as it does; 128 and more for a signal, as a shell has it."""
    pipe, command = int(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    process = subprocess.Popen(command)
    for number in (signal.SIGINT, signal.SIGTERM):  # to the command alone: its data workers must outlive a notice
        signal.signal(number, lambda number, frame: process.send_signal(number))
    code = process.wait()
    sys.exit(code if code >= 0 else 128 - code)


def _end_with(pipe: int) -> None:
    """Kills the whole group, this process included, when the pipe ends."""
    os.read(pipe, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
