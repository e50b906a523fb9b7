"""How processes meet before JAX joins them: here in threads, and in real processes in `tests/multiprocess/`."""

import concurrent.futures
import contextlib
import json
import socket
import time

import pytest

from kdist.distribution import rendezvous
from kdist.distribution.rendezvous import AbsentError, Process, differences, is_loopback, listen, meet, numbered, split
from kdist.errors import DistributionError

SECONDS = 30.0
"""No test waits longer."""


@pytest.fixture
def start(address):
    """``start(num_processes, process_id, seconds)``: one that comes, in a thread."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        yield lambda count, number, seconds=SECONDS: pool.submit(
            meet, address, count, number, seconds=seconds, bind_address=address
        )


def connected(address, text=b""):
    """A connection to process 0, as soon as it listens."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            connection = socket.create_connection(split(address), timeout=SECONDS)
        except OSError:
            assert time.monotonic() < deadline
        else:
            connection.sendall(text)
            return connection


def said(*processes):
    """The one error of all."""
    errors = {str(process.exception(SECONDS)) for process in processes}
    assert all(isinstance(process.exception(), DistributionError) for process in processes)
    assert len(errors) == 1
    return errors.pop()


def test_all_come_in_any_order(start, address):
    others = [start(5, number) for number in (4, 2, 1)]
    first = start(5, 0)
    others.append(start(5, 3))
    processes, bound = first.result(SECONDS)
    assert [process.process_id for process in processes] == list(range(5)) and bound == address
    assert {process.host for process in processes} == {socket.gethostname()}
    assert all(abs(process.ahead) < 5 for process in processes)
    assert [other.result(SECONDS) for other in others] == [([], address)] * 4


def test_who_is_missing_is_named_when_the_least_patient_has_waited(start):
    began = time.monotonic()
    waiting = [start(9, 0), start(9, 2, 0.8), start(9, 8)]
    error = said(*waiting)
    assert {type(process.exception()) for process in waiting} == {AbsentError}
    assert "Processes 1, 3-7 of 9 have not joined within 1 s. Here are processes 0, 2, 8." in error
    assert time.monotonic() - began < SECONDS / 2


def test_one_who_left_is_missing_and_may_come_again(start, address):
    first = start(3, 0, 1.5)
    for _ in range(3):
        connected(address, Process.here(1, 3, SECONDS).line()).close()
    second = start(3, 2)
    assert "Process 1 of 3 has not joined within 2 s. Here are processes 0, 2." in said(first, second)

    first = start(3, 0)
    connected(address, Process.here(1, 3, SECONDS).line()).close()
    others = [start(3, 1), start(3, 2)]
    assert len(first.result(SECONDS)[0]) == 3 and all(other.result(SECONDS) for other in others)


def test_two_with_one_number_are_refused(start):
    first = start(4, 0)
    error = said(first, start(4, 1), start(4, 1))
    assert error.startswith("Two processes have process_id 1: one on ")


def test_another_count_is_refused(start):
    error = said(start(2, 0), start(3, 1))
    assert error.startswith("num_processes is 2 on process 0 (") and "and 3 on process 1 (" in error


def test_other_versions_are_refused(start, address):
    first, second = start(3, 0), start(3, 1)
    here = vars(Process.here(2, 3, SECONDS))
    old = {**here, "versions": {**here["versions"], "jax": "0.4.1"}}
    with connected(address, json.dumps(old).encode() + b"\n") as third:
        error = said(first, second)
        assert json.loads(third.recv(10_000)) == {"error": error, "absent": False}
    assert "0.4.1 on process 2. Install the same versions on every host." in error
    assert error.startswith("All processes must run the same software, but jax is ")


def test_strangers_do_no_harm(start, address):
    first = start(2, 0)
    with contextlib.ExitStack() as stack:
        line = Process.here(1, 2, SECONDS).line()
        for text in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\0\xff\n", line[:20], b"{}\n", b"x" * 70_000):
            with contextlib.suppress(ConnectionError):  # it is not listened to any longer
                stack.enter_context(connected(address, text))
        second = start(2, 1)
        assert len(first.result(SECONDS)[0]) == 2 and second.result(SECONDS)


def test_what_is_no_process_0_is_not_believed(start, address):
    """Something that echoes, something that answers, and something that hangs up; then process 0 comes."""
    second = start(2, 1)
    answers = (lambda heard: heard, lambda heard: b"HTTP/1.1 400\r\n", lambda heard: b"null\n", lambda heard: b"")
    with listen(address) as listener:
        listener.settimeout(SECONDS)
        for answer in answers:
            with listener.accept()[0] as connection:
                connection.sendall(answer(connection.recv(10_000)))
    assert len(start(2, 0).result(SECONDS)[0]) == 2 and second.result(SECONDS)


def test_one_who_is_answered_by_something_else_says_so(start, address):
    with listen(address) as listener:
        listener.settimeout(SECONDS)
        waiting = start(2, 1, 0.3)
        with listener.accept()[0] as connection:
            connection.sendall(b"\0\0\x12\x04\0\0\0\0\0\n")  # as a server of HTTP/2: a run under way
        listener.close()
        assert "Process 1 of 2 could not join process 0 at" in said(waiting)


def test_who_gets_no_answer_says_so(monkeypatch):
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DistributionError, match=f"Process 1 of 2 could not join process 0 at {address} within"):
            meet(address, 2, 1, seconds=0.3, bind_address=address)


def test_process_0_must_reach_itself(address):
    with pytest.raises(DistributionError, match=f"listens at 127.0.0.2:.* and cannot reach itself at {address}"):
        meet(address, 2, 0, seconds=5, bind_address=address.replace("127.0.0.1", "127.0.0.2"))


# Addresses -----------------------------------------------------------------------------------------


def test_only_the_given_address_is_listened_at(address):
    port = split(address)[1]
    with listen(f"127.0.0.2:{port}") as listener:
        assert listener.getsockname() == ("127.0.0.2", port)
        with listen(f"127.0.0.3:{port}"):
            pass
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        with pytest.raises(DistributionError, match=f"Port {port} of 127.0.0.2 is in use on .* another port"):
            listen(f"127.0.0.2:{port}")


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_host_cannot_be_listened_at(host):
    with pytest.raises(DistributionError, match=f"cannot listen at {host}:80 on .* 0.0.0.0:80 for all"):
        listen(f"{host}:80")


def test_loopback():
    assert all(map(is_loopback, ("localhost:1", "127.0.1.1:1", "[::1]:1")))
    assert not any(map(is_loopback, ("10.0.0.1:1", "0.0.0.0:1", "no.such.host.invalid:1", "[fe80::1]:1")))
    assert split("[fe80::1]:80") == ("fe80::1", 80)


# What is said --------------------------------------------------------------------------------------


def test_a_process_is_read_as_it_was_written():
    here = Process.here(1, 3, 2.5)
    read = Process.read(here.line())
    assert abs(read.ahead) < 5
    assert vars(read) | {"ahead": 0.0} == vars(here)
    assert set(here.versions) >= {"kdist", "python", "jax", "jaxlib", "flax", "optax"}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\0\0\x12\x04\0\0\0\0\0",  # what a server of HTTP/2 says first
        b"GET / HTTP/1.1",
        b"[]",
        b"{}",
        b'{"error": null}',
        b'{"process_id": "1", "num_processes": 2, "host": "a", "seconds": 1, "clock": 1, "versions": {}}',
        b'{"process_id": 1, "num_processes": 2, "host": "a", "seconds": null, "clock": 1, "versions": {}}',
    ],
)
def test_what_is_no_process_is_not_read(line):
    assert Process.read(line) is None


def test_differences_are_named_with_who_has_them():
    assert differences({0: {"a": "1"}, 1: {"a": "1"}}) == ""
    many = {i: {"jax": "0.10.2" if i % 3 else "0.10.1", "seed": str(i // 4)} for i in range(6)}
    assert differences(many) == (
        "jax is 0.10.1 on processes 0, 3 and 0.10.2 on processes 1-2, 4-5; seed is 0 on processes 0-3 and 1 on "
        "processes 4-5"
    )
    assert differences({0: {"a": "1"}, 1: {}}) == "a is 1 on process 0 and not there on process 1"


def test_of_long_values_what_differs_is_shown():
    a, b = ("x" * 1000 + end + "y" * 1000 for end in "ab")
    told = differences({0: {"code": a}, 1: {"code": b}})
    assert f"...{'x' * 25}a{'y' * 74}... on process 0" in told and f"...{'x' * 25}b" in told and len(told) < 300
    assert "others have 3 other values" in differences({i: {"n": str(i)} for i in range(7)})


def test_numbers_are_gathered_into_ranges():
    assert numbered([5]) == "process 5"
    assert numbered([5, 6]) == "processes 5-6"
    assert numbered([0, 2, 3, 4, 9]) == "processes 0, 2-4, 9"
