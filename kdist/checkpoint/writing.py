"""Writes a checkpoint in the background.

What blocks is a copy of the arrays to the host, since the next step reuses their memory.  Their fingerprints are
computed on the devices meanwhile; they are waited for, and written with the note, in the background too.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import socket
import zlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdist.checkpoint.directory import (
    FORMAT,
    NOTE,
    NOTE_FILE,
    UNFINISHED,
    beside,
    is_checkpoint,
    on_main_process,
    stored,
)
from kdist.checkpoint.fingerprints import Fingerprints
from kdist.checkpoint.notes import to_json
from kdist.distribution import agree, agree_on_least, gather, is_main_process
from kdist.errors import CheckpointError
from kdist.typing import PyTree
from kdist.versions import installed

FAILED, UNDER_WAY, WRITTEN = range(3)
"""What a process knows of its part; of several, the least is what holds for all."""
ASK_SECONDS = 1.0
"""How often processes that wait for a save ask each other: where one has failed, the parts of others may never end."""


class Writing:
    """A checkpoint on its way to the disk; what it is made of has been copied, and may change.

    Args:
        path: Where it will be.
        kind: What it is, for messages.
        response: Orbax's handle on the background work.
        put_in_place: Called on process 0 when all is written.
    """

    def __init__(self, path: Path, kind: str, response: Any, put_in_place: Callable[[], None]) -> None:
        self.path, self._failing = path, f"Cannot write {kind} to {path}"
        self._response, self._put_in_place = response, put_in_place
        self._error: CheckpointError | None = None

    def wait_here(self, seconds: float) -> int:
        """Waits for this process's part alone, and so long at most: FAILED, UNDER_WAY or WRITTEN."""
        try:
            self._response.result(timeout=seconds)
        except Exception as cause:  # Orbax raises what its writers do: OSError, ValueError, RuntimeError, ...
            if isinstance(cause, TimeoutError) and not cause.args:  # that of the wait; one of the disk has arguments
                return UNDER_WAY
            host = f"on process {jax.process_index()} of host {socket.gethostname()}"
            self._error = CheckpointError(f"{self._failing}, {host}: {cause}")
            self._error.__cause__ = cause
            return FAILED
        return WRITTEN

    def wait(self, seconds: float = 0.0) -> bool:
        """Waits so long at most; whether the checkpoint is complete on the disk.  All processes call it.

        Args:
            seconds: How long; not at all by default.

        Raises:
            CheckpointError: It could not be written, here or on another process.
        """
        least = agree_on_least(self.wait_here(seconds))
        if least == FAILED:
            raise self._agreed_error()
        if least == WRITTEN:
            on_main_process(self._put_in_place, self._failing)
        return least == WRITTEN

    def finish(self) -> None:
        """Waits until the checkpoint is complete on the disk.  All processes call it.

        Raises:
            CheckpointError: It could not be written, here or on another process.
        """
        while not self.wait(ASK_SECONDS):
            pass

    def _agreed_error(self) -> CheckpointError:
        """This process's error, or that of the first that has one."""
        texts = gather(str(self._error or "").encode(errors="replace"))
        return self._error or CheckpointError(next(filter(None, texts)).decode())


class _Note:
    """The note of a checkpoint, as Orbax takes it: written beside the arrays, when their fingerprints are there."""

    def __init__(self, fingerprints: Fingerprints, meta: dict[str, Any]) -> None:
        self._fingerprints, self._meta = fingerprints, to_json(meta)  # now: what it is made of may change

    def wait(self) -> None:
        """Waits for the fingerprints."""
        self._fingerprints.read()

    async def save(self, directory: Any) -> Awaitable[None]:
        """What is left to do in the background."""
        return self._save(directory)

    async def load(self, directory: Any) -> Awaitable[None]:
        """It is read without Orbax, which knows by this method what it has got."""
        raise NotImplementedError

    async def _save(self, directory: Any) -> None:
        path = await directory.await_creation()
        if is_main_process():
            await asyncio.to_thread(self._write, Path(path, NOTE_FILE))

    def _write(self, path: Path) -> None:
        fingerprints: dict[str, dict[str, int]] = {}
        for (tree, name), value in self._fingerprints.read().items():
            fingerprints.setdefault(tree, {})[name] = value
        note = {
            "format": FORMAT,
            "versions": installed(),
            "fingerprints": fingerprints,
            "meta": self._meta,
            "checksum": zlib.crc32(self._meta.encode()),
        }
        path.write_text(json.dumps(note), encoding="utf-8")


def begin(
    directory: str | os.PathLike[str], trees: dict[str, PyTree], meta: dict[str, Any] | None = None, *, kind: str
) -> Writing:
    """Begins to write a checkpoint in the background; one that is there is replaced at the end.  All processes call it.

    Args:
        directory: Where to; its parents are made.
        trees: Trees of arrays by name, which are copied before this returns.
        meta: A note that JSON can hold.
        kind: What is written, for messages: "weights" or "training states".

    Raises:
        CheckpointError: The directory cannot be written, or holds something else.
    """
    path = Path(directory).absolute()
    new, old, failing = beside(path, "new"), beside(path, "old"), f"Cannot write {kind} to {path}"

    def make_way() -> None:
        if path.exists() and not path.is_dir():
            raise CheckpointError(f"{failing}: it is a file, not a directory.")
        if path.is_dir() and any(path.iterdir()) and not is_checkpoint(path):
            raise CheckpointError(f"{failing}: the directory holds files that are no checkpoint. Give one of its own.")
        path.parent.mkdir(parents=True, exist_ok=True)
        # What a killed run left behind; the old one is complete, so it is kept until there is another.
        if old.is_dir() and not path.exists():
            old.rename(path)
        names = tuple(f"{name}{UNFINISHED}" for name in (new.name, path.name))
        unfinished = [p for p in path.parent.iterdir() if p.name.startswith(names)]
        for leftover in [*unfinished, new, old]:
            shutil.rmtree(leftover, ignore_errors=True)

    def put_in_place() -> None:
        if not new.exists():
            return
        if path.exists():
            path.rename(old)
        new.rename(path)
        shutil.rmtree(old, ignore_errors=True)

    named = {name: stored(tree) for name, tree in trees.items()}
    for name, arrays in named.items():
        for n, a in arrays.items():
            if not _can_be_stored(a.dtype):
                raise CheckpointError(f"{failing}: {name}.{n} is of {a.dtype}, which Orbax cannot store.")
    found = Fingerprints({(name, n): a for name, arrays in named.items() for n, a in arrays.items()})
    on_main_process(make_way, failing)
    target = new if agree(int(path.exists())) else path  # Orbax itself renames what is complete
    try:
        response = _start(target, named, _Note(found, meta or {}))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{failing}: {error}") from error
    return Writing(path, kind, response, put_in_place)


def _start(target: Path, trees: dict[str, dict[str, Any]], note: _Note) -> Any:
    """Calls Orbax, and returns its handle on what is left to do.

    The call takes it tens of milliseconds.  A single process leaves it to a thread, once all is copied to the host.
    Of several, the main thread must call: Orbax agrees with the others by collectives, which may not come between those
    of training in another order on each process.
    """
    if jax.process_count() > 1:
        return _call(target, {**trees, NOTE: note})
    copied = _on_host(trees)

    def save() -> None:
        note.wait()  # first, since it leaves the interpreter to the main thread, which has the next step to start
        _call(target, {**copied, NOTE: note}).result()

    return _thread().submit(save)


def _call(target: Path, things: dict[str, Any]) -> Any:
    """Orbax's handle on a save, without compression: it takes a tenth off floats, and most of the time of a save."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.array.saving.use_compression = False
    with context:
        return ocp.save_checkpointables_async(target, things)


@functools.cache
def _thread() -> ThreadPoolExecutor:
    """The thread that saves: it is there already at the next save, which would else wait until it has started."""
    return ThreadPoolExecutor(1, "kdist-save")


def _on_host(trees: dict[str, dict[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """The arrays in the host's memory.

    Of a CPU device this is the array's own memory, which the runtime copies when it is donated to a step.
    """
    for a in jax.tree.leaves(trees):
        if isinstance(a, jax.Array):
            a.copy_to_host_async()
    return {name: {n: np.asarray(a) for n, a in arrays.items()} for name, arrays in trees.items()}


@functools.cache
def _can_be_stored(dtype: np.dtype) -> bool:
    import tensorstore

    try:
        return bool(tensorstore.dtype(dtype.name))
    except (TypeError, ValueError):
        return False


def write(
    directory: str | os.PathLike[str], trees: dict[str, PyTree], meta: dict[str, Any] | None = None, *, kind: str
) -> None:
    """Writes a checkpoint, and returns when it is complete on the disk; see `begin`.

    Raises:
        CheckpointError: It cannot be written, or the directory holds something else.
    """
    begin(directory, trees, meta, kind=kind).finish()
