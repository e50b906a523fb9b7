"""Compiled programs kept on the disk, so that a run that is started again reads them instead of compiling them.

The cache is JAX's own.  What is decided here is whether it is on and where it is: a program that is read is run, so
nobody else may write there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import random
import stat
import warnings
from pathlib import Path

import jax

from kdist.distribution import agree, gather, is_main_process

VARIABLE = "KDIST_COMPILE_CACHE"
OFF = ("0", "off", "none")
"""Values of the variable that turn the cache off."""

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Choice:
    """Where the cache is to be.

    Attributes:
        path: A directory, or an address such as ``gs://bucket/directory``; None for no cache.
        reason: Who or what says so.
        ours: Whether kdist answers for the directory, and not JAX's own settings.
    """

    path: str | None
    reason: str
    ours: bool = True

    @property
    def remote(self) -> bool:
        """Whether it is no directory of this host's file system."""
        return self.path is not None and "://" in self.path


def choose(platform: str) -> Choice:
    """Where programs for a platform are kept.

    What JAX has been told goes first: ``JAX_COMPILATION_CACHE_DIR``, ``JAX_ENABLE_COMPILATION_CACHE`` or its config.
    Then comes ``KDIST_COMPILE_CACHE``: a directory, or ``0`` for none.  Without either, programs for accelerators are
    kept in ``kdist/jax`` of ``XDG_CACHE_HOME``, by default ``~/.cache``, and programs for the CPU nowhere: they compile
    fast, and run only on processors like the one that they were made for.

    Args:
        platform: "cpu", "gpu" or "tpu".

    Example:
        >>> choose("cpu").path is None or choose("cpu").reason != "default"
        True
    """
    told = jax.config.values["jax_compilation_cache_dir"]
    if not jax.config.values["jax_enable_compilation_cache"]:
        return Choice(None, "jax_enable_compilation_cache is off", ours=False)
    if told:
        return Choice(told, "jax_compilation_cache_dir", ours=False)
    own = os.environ.get(VARIABLE, "")
    if own.lower() in OFF:
        return Choice(None, f"{VARIABLE}={own}")
    if own:
        return Choice(own if "://" in own else str(Path(own).expanduser().absolute()), VARIABLE)
    if platform == "cpu":
        return Choice(None, f"off for the CPU; set {VARIABLE} to a directory to have one")
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(root) if os.path.isabs(root) else Path("~/.cache").expanduser()  # the standard ignores relative paths
    return Choice(str(base / "kdist" / "jax"), "default")


def trouble(path: str | Path) -> str:
    """Why programs from a directory are not to be trusted, or none can be kept there; empty if all is well.

    Args:
        path: The directory, which must exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     trouble(directory)
        ''
    """
    try:
        found = os.stat(path)
    except OSError as error:
        return f"it cannot be read: {error}"
    if not stat.S_ISDIR(found.st_mode):
        return "it is no directory"
    if found.st_uid != os.geteuid():
        return f"it belongs to another user (uid {found.st_uid}, this is {os.geteuid()})"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to it (mode {stat.S_IMODE(found.st_mode):04o}): chmod 700 {path}"
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return f"it cannot be written (mode {stat.S_IMODE(found.st_mode):04o})"
    return ""


def enable() -> None:
    """Turns the cache on where it is to be.  It does so once; all processes must call it, at the same point.

    Several processes have one only if all of them see process 0's: JAX lets no other write, and on GPUs some processes
    that compile would wait for those that read.

    Example:
        >>> enable()
        >>> enable()  # changes nothing
    """
    if _counts.listening:
        return
    _counts.listen()
    choice = choose(jax.default_backend())
    problem = _prepared(choice)
    if problem and is_main_process():
        warnings.warn(
            f"No compile cache at {choice.path}: {problem}. Set {VARIABLE} to another directory.", stacklevel=3
        )
    usable = choice.ours and choice.path is not None and not problem
    if not _all_share(choice.path if usable else None, remote=choice.remote):
        log.info("compile cache: none, as not all processes have it (%s)", choice)
        return
    if usable:
        jax.config.update("jax_compilation_cache_dir", choice.path)
    log.info("compile cache: %s", choice)


def _prepared(choice: Choice) -> str:
    """What is wrong with the directory, which is made if there is none."""
    if not choice.ours or choice.path is None or choice.remote:
        return ""
    try:
        # The mode of `makedirs` is that of the last directory only.
        Path(choice.path).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(choice.path, 0o700)
    except OSError as error:
        return f"it cannot be made: {error}"
    return trouble(choice.path)


def _all_share(path: str | None, *, remote: bool) -> bool:
    """Whether all processes have the directory of process 0, or none of them any: they ask for a file in it."""
    if jax.process_count() == 1:
        return True
    number = agree(random.SystemRandom().getrandbits(32))
    token = None if path is None or remote else Path(path) / f"shared-{number}"
    try:
        if token is not None and is_main_process():
            with contextlib.suppress(OSError):  # then nobody sees it
                token.touch()
        gather(b".")  # it is there for all to see
        seen = remote if token is None else token.exists()
        everywhere = gather(b"%d%d" % (path is not None, seen))
    finally:
        if token is not None and is_main_process():
            token.unlink(missing_ok=True)
    return len(set(everywhere)) == 1 and everywhere[0] in (b"00", b"11")


# What it was good for ------------------------------------------------------------------------------


@dataclasses.dataclass
class _Counts:
    """What JAX tells of its cache in this process."""

    hits: int = 0
    misses: int = 0
    seconds_saved: float = 0.0
    listening: bool = False
    told: bool = False

    def listen(self) -> None:
        self.listening = True
        jax.monitoring.register_event_listener(self._event)
        jax.monitoring.register_event_duration_secs_listener(self._duration)

    def _event(self, event: str, **_: object) -> None:
        self.hits += event == "/jax/compilation_cache/cache_hits"
        self.misses += event == "/jax/compilation_cache/cache_misses"

    def _duration(self, event: str, duration_secs: float, **_: object) -> None:
        if event == "/jax/compilation_cache/compile_time_saved_sec":
            self.seconds_saved += max(0.0, duration_secs)


_counts = _Counts()


def tell() -> None:
    """Prints a line on what the cache has done in this process: on process 0, once, and if it has done something.

    Programs that compile in less than ``jax_persistent_cache_min_compile_time_secs``, a second, are not kept, and do
    not count.

    Example:
        >>> tell()  # nothing was read or kept
    """
    if _counts.told or not _counts.hits + _counts.misses or not is_main_process():
        return
    _counts.told = True
    print(
        f"Compile cache: {_counts.hits} hit{'s' * (_counts.hits != 1)}, {_counts.seconds_saved:.1f} s saved, "
        f"{_counts.misses} miss{'es' * (_counts.misses != 1)} ({jax.config.values['jax_compilation_cache_dir']})",
        flush=True,
    )
