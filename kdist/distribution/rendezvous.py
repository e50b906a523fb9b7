"""Where the processes of a run meet before JAX joins them, so that who is missing or unlike the others is named.

JAX ends a process that has waited for others in vain with SIGABRT, and names nobody.  So process 0 first listens at
the coordinator's address itself.  Every other process connects, says who it is in a line of JSON and waits for one
line in answer: to go on, or what is wrong, which all of them raise.  Then the port is JAX's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import ipaddress
import json
import os
import selectors
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from kdist.errors import DistributionError
from kdist.versions import installed

RETRY_SECONDS = 0.1
"""How long a process waits before it tries again to reach process 0."""
ANSWER_SECONDS = 5.0
"""How much longer than its own patience a process waits for process 0 to say who is missing."""
SELF_SECONDS = 5.0
"""How long process 0 tries to reach itself."""
MOST_BYTES = 1 << 16
"""The longest line that is read; who sends more is no process of ours."""


class AbsentError(DistributionError):
    """Some processes did not come in time."""


@dataclasses.dataclass(frozen=True)
class Process:
    """What a process says of itself.

    Attributes:
        process_id: Its number.
        num_processes: How many it thinks there are.
        host: The name of its host.
        seconds: How long it is willing to wait from now on.
        clock: The time of its clock, in seconds since 1970, when it said this.
        versions: Its versions, by name (see `kdist.versions`).
        ahead: How many seconds its clock is ahead of process 0's, measured when process 0 hears it; so the time on the
            way counts as being behind.
    """

    process_id: int
    num_processes: int
    host: str
    seconds: float
    clock: float
    versions: Mapping[str, str]
    ahead: float = 0.0

    @classmethod
    def here(cls, process_id: int, num_processes: int, seconds: float) -> Self:
        """This process, now."""
        return cls(process_id, num_processes, socket.gethostname(), seconds, time.time(), installed())

    @classmethod
    def read(cls, line: bytes) -> Self | None:
        """The process that a line is from; None if it is from something else."""
        try:
            heard = cls(**json.loads(line))
        except (ValueError, TypeError):
            return None
        kinds = ((heard.process_id, int), (heard.num_processes, int), (heard.host, str), (heard.versions, dict))
        if not all(isinstance(value, kind) for value, kind in kinds):
            return None
        if not all(isinstance(value, (int, float)) for value in (heard.seconds, heard.clock)):
            return None
        return dataclasses.replace(heard, ahead=heard.clock - time.time())

    def line(self) -> bytes:
        """What `read` reads."""
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"


def meet(
    address: str, num_processes: int, process_id: int, *, seconds: float, bind_address: str
) -> tuple[list[Process], str]:
    """Waits until all processes are there and alike.

    The least patient process decides when the wait is over, so that all of them hear who is missing.

    Args:
        address: ``host:port`` of process 0, as the others reach it.
        num_processes: How many there are.
        process_id: Which of them this is.
        seconds: How long it waits.
        bind_address: ``host:port`` that process 0 listens at.

    Returns:
        On process 0 all processes, in their order, and the numeric ``host:port`` that it listened at; on others no
        process and `bind_address`.

    Raises:
        AbsentError: Some are missing after that time, or process 0 cannot be reached.
        DistributionError: They differ in versions or in how many there are, two have one number, or process 0 cannot
            listen.
    """
    deadline = time.monotonic() + seconds
    if process_id != 0:
        _visit(address, process_id, num_processes, deadline)
        return [], bind_address
    with listen(bind_address) as listener:
        host, port = listener.getsockname()[:2]
        _reach_self(address, bind_address)
        with _Guests(listener, address, Process.here(0, num_processes, seconds)) as guests:
            guests.wait(deadline)
    return guests.processes, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Guests:
    """Who comes to process 0; a context manager, which at its end answers all, with the error if there is one."""

    def __init__(self, listener: socket.socket, address: str, own: Process) -> None:
        self._listener, self._address, self._own = listener, address, own
        self._joined: dict[socket.socket, Process] = {}
        self._heard: dict[socket.socket, bytes] = {}
        self._selector = selectors.DefaultSelector()

    @property
    def processes(self) -> list[Process]:
        """All that are here, in their order."""
        return sorted([self._own, *self._joined.values()], key=lambda process: process.process_id)

    def __enter__(self) -> Self:
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        return self

    def __exit__(self, kind: object, error: BaseException | None, where: object) -> None:
        self._selector.close()
        # Closed first: JAX listens here as soon as the others hear that they may go on.
        self._listener.close()
        wrong = str(error) if isinstance(error, DistributionError) else f"Process 0 gave up: {error!r}"
        told = {"error": wrong if error else None, "absent": isinstance(error, AbsentError)}
        answer = json.dumps(told).encode() + b"\n"
        for guest in self._heard:
            with guest, contextlib.suppress(OSError):  # it is gone, and its own limit ends it
                guest.settimeout(1.0)
                guest.sendall(answer)

    def wait(self, deadline: float) -> None:
        """Until all are there and alike.

        Raises:
            AbsentError: Some have not come in time.
            DistributionError: They are not alike.
        """
        patience = self._own.seconds
        while len(self._joined) < self._own.num_processes - 1:
            left = deadline - time.monotonic()
            if left <= 0:
                raise AbsentError(self._missing(patience))
            for key, _ in self._selector.select(left):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and (new := self._hear(key.fileobj)) is not None:
                    if time.monotonic() + new.seconds < deadline:
                        deadline, patience = time.monotonic() + new.seconds, new.seconds
        differ = differences({process.process_id: process.versions for process in self.processes})
        if differ:
            raise DistributionError(
                f"All processes must run the same software, but {differ}. Install the same versions on every host."
            )

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it is gone already
            guest, _ = self._listener.accept()
            guest.setblocking(False)
            self._heard[guest] = b""
            self._selector.register(guest, selectors.EVENT_READ)

    def _hear(self, guest: socket.socket) -> Process | None:
        """The process that has said all now; who leaves or says something else is forgotten."""
        try:
            part = guest.recv(MOST_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            part = b""
        self._heard[guest] += part
        line, end, _ = self._heard[guest].partition(b"\n")
        new = Process.read(line) if end else None
        if not part or len(line) >= MOST_BYTES or (end and new is None) or guest in self._joined:
            self._selector.unregister(guest)
            guest.close()
            del self._heard[guest]
            self._joined.pop(guest, None)
            return None
        if new is not None:
            self._check(new)
            self._joined[guest] = new
        return new

    def _check(self, new: Process) -> None:
        count = self._own.num_processes
        if new.num_processes != count:
            raise DistributionError(
                f"num_processes is {count} on process 0 ({self._own.host}) and {new.num_processes} on process "
                f"{new.process_id} ({new.host}). Give all processes the same."
            )
        for other in self.processes:
            if other.process_id == new.process_id:
                raise DistributionError(
                    f"Two processes have process_id {new.process_id}: one on {other.host} and one on {new.host}. Give "
                    "each its own, from 0."
                )

    def _missing(self, seconds: float) -> str:
        here = {process.process_id: process.host for process in self.processes}
        away = [i for i in range(self._own.num_processes) if i not in here]
        many = len(away) > 1
        return (
            f"{numbered(away).capitalize()} of {self._own.num_processes} {'have' if many else 'has'} not joined within "
            f"{seconds:.0f} s. Here {'is' if len(here) == 1 else 'are'} {numbered(here)}. See whether "
            f"{'they run and what they say' if many else 'it runs and what it says'}, and that {self._address} can be "
            f"reached from there (names, firewall){_only_here(self._address)}; or give a longer initialization_timeout."
        )


def _visit(address: str, process_id: int, num_processes: int, deadline: float) -> None:
    """Joins process 0, as soon as it is there.

    Raises:
        AbsentError: It is not there in time, or others are not.
        DistributionError: It says that something else is wrong.
    """
    seconds = deadline - time.monotonic()
    problem = "no time to try"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(split(address), timeout=left) as connection:
                connection.sendall(Process.here(process_id, num_processes, left).line())
                answer = _answer(connection, deadline + ANSWER_SECONDS)
        except OSError as error:
            problem = str(error)
        else:
            if answer is not None:
                if answer["error"] is None:
                    return
                raise (AbsentError if answer["absent"] else DistributionError)(answer["error"])
            problem = "something answers that is no process 0 waiting for others: another program, or a run under way"
        time.sleep(RETRY_SECONDS)
    raise AbsentError(
        f"Process {process_id} of {num_processes} could not join process 0 at {address} within {seconds:.0f} s: "
        f"{problem}. See whether process 0 runs and what it says, and that its address can be reached from "
        f"{socket.gethostname()} (names, firewall){_only_here(address)}; or give a longer initialization_timeout."
    )


def _answer(connection: socket.socket, deadline: float) -> dict[str, Any] | None:
    """What process 0 says; None if it is not process 0 who speaks."""
    heard = b""
    while b"\n" not in heard and len(heard) < MOST_BYTES:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        part = connection.recv(MOST_BYTES)
        if not part:
            return None
        heard += part
    with contextlib.suppress(ValueError):
        answer = json.loads(heard)
        if isinstance(answer, dict) and answer.keys() == {"error", "absent"}:
            return answer
    return None


def _reach_self(address: str, bind_address: str) -> None:
    """Sees that process 0 reaches itself as the others do, since JAX does so too, and ends the process if it cannot.

    Raises:
        DistributionError: It does not.
    """
    try:
        socket.create_connection(split(address), timeout=SELF_SECONDS).close()
    except OSError as error:
        raise DistributionError(
            f"Process 0 listens at {bind_address} and cannot reach itself at {address}: {error}. Give a bind_address "
            "that belongs to the coordinator's address."
        ) from error


# Addresses ---------------------------------------------------------------------------------------


def split(address: str) -> tuple[str, int]:
    """Host and port.

    Args:
        address: ``host:port`` or ``[IPv6]:port``.

    Raises:
        DistributionError: It is something else.

    Example:
        >>> split("10.0.0.1:8476"), split("[::1]:8476")
        (('10.0.0.1', 8476), ('::1', 8476))
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16 or (":" in host and host[0] != "["):
        raise DistributionError(f"An address must be host:port or [IPv6]:port. Received: {address!r}.")
    return host.strip("[]"), int(port)


def listen(address: str) -> socket.socket:
    """Listens at an address of this host, and at no other.

    Args:
        address: ``host:port``; ``0.0.0.0`` or ``[::]`` for every interface.

    Raises:
        DistributionError: The port is in use, or the address is not one of this host.
    """
    host, port = split(address)
    failed: OSError = OSError("it has no address")
    for family, place in resolve(host, port):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections of a run before
            listener.bind(place)
            listener.listen(socket.SOMAXCONN)
        except OSError as error:
            listener.close()
            failed = error
            if error.errno == errno.EADDRINUSE:
                break
        else:
            return listener
    if failed.errno == errno.EADDRINUSE:
        raise DistributionError(
            f"Port {port} of {host} is in use on {socket.gethostname()}, where process 0 is to listen. End what holds "
            f"it (see `ss -ltnp 'sport = :{port}'`), or give all processes a coordinator_address with another port."
        ) from failed
    raise DistributionError(
        f"Process 0 cannot listen at {address} on {socket.gethostname()}: {failed}. Give a bind_address of this host, "
        f"or 0.0.0.0:{port} for all its interfaces."
    ) from failed


def resolve(host: str, port: int) -> Iterator[tuple[socket.AddressFamily, tuple]]:
    """The addresses of a host, none if the name is unknown.

    Args:
        host: A name or an address.
        port: A port, which they get.

    Example:
        >>> [place for _, place in resolve("127.0.0.1", 80)]
        [('127.0.0.1', 80)]
    """
    with contextlib.suppress(socket.gaierror):
        for family, _, _, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            yield family, place


def is_loopback(address: str) -> bool:
    """Whether an address leads only to the host that it is looked up on.

    Args:
        address: ``host:port``.

    Example:
        >>> is_loopback("localhost:1"), is_loopback("10.0.0.1:1")
        (True, False)
    """
    places = [ipaddress.ip_address(place[0].partition("%")[0]) for _, place in resolve(*split(address))]
    return bool(places) and all(place.is_loopback for place in places)


def _only_here(address: str) -> str:
    """A clause for an error, where the address tells that it leads nowhere else."""
    return f"; {address} is the loopback address, which leads nowhere from other hosts" if is_loopback(address) else ""


# What differs ------------------------------------------------------------------------------------


def numbered(processes: Iterable[int]) -> str:
    """Processes by their numbers.

    Args:
        processes: The numbers, ascending.

    Example:
        >>> numbered([1]), numbered([0, 2, 3, 4, 7])
        ('process 1', 'processes 0, 2-4, 7')
    """
    runs: list[list[int]] = []
    for process in processes:
        if runs and process == runs[-1][1] + 1:
            runs[-1][1] = process
        else:
            runs.append([process, process])
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    return f"process{'es' * (len(runs) > 1 or runs[0][0] < runs[0][1])} {', '.join(texts)}"


def differences(values: Mapping[int, Mapping[str, str]]) -> str:
    """What is not the same on all processes, with the values and who has them; empty if all is.

    Args:
        values: What each process has, by name, by process, ascending.

    Example:
        >>> differences({0: {"batch_size": "8"}, 1: {"batch_size": "6"}, 2: {"batch_size": "8"}})
        'batch_size is 8 on processes 0, 2 and 6 on process 1'
    """
    found = []
    for name in dict.fromkeys(name for own in values.values() for name in own):
        who: dict[str, list[int]] = {}
        for process, own in values.items():
            who.setdefault(own.get(name, "not there"), []).append(process)
        if len(who) > 1:
            shown = list(zip(_apart(list(who)), who.values(), strict=True))[:MOST_VALUES]
            texts = [f"{value} on {numbered(those)}" for value, those in shown]
            more = len(who) - len(texts)
            found.append(f"{name} is {' and '.join(texts)}" + f"; others have {more} other values" * bool(more))
    return "; ".join(found)


MOST_VALUES = 4
"""So many values of one name are shown."""
MOST_SHOWN = 100
"""So many characters of a value are shown, from a little before where it differs from others."""


def _apart(values: list[str]) -> list[str]:
    """Texts, cut to where they differ."""
    start = max(0, len(os.path.commonprefix(values)) - MOST_SHOWN // 4)
    if max(map(len, values)) <= MOST_SHOWN:
        start = 0
    cut = [value[start:] for value in values]
    return [f"{'...' * (start > 0)}{text[:MOST_SHOWN]}{'...' * (len(text) > MOST_SHOWN)}" for text in cut]
