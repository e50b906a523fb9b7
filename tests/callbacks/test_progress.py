"""ProgressBar: plain lines where there is no terminal; in a terminal a bar that leaves it whole."""

import io
import os
import pty
import re
import threading
import types

import flax.linen as nn
import jax
import numpy as np
import pytest

import kdist
from kdist.callbacks import Callback, ProgressBar, progress
from kdist.callbacks.progress import _duration, _format, _number

SHOW, HIDE = "\x1b[?25h", "\x1b[?25l"


@pytest.fixture(scope="module")
def model():
    model = kdist.Model(nn.Dense(1))
    distribution = kdist.DataParallel(devices=jax.devices()[:1])
    model.compile("sgd", "mse", metrics=["mae"], distribution=distribution)
    return model


X, Y = np.ones((40, 2), np.float32), np.ones((40, 1), np.float32)
NUMBER = r"\d+\.\d{4}|\d\.\d\de-\d\d"


def epoch_line(title, *, validated=False, rate=r"(  [\d,]+ samples/s)?"):
    """The pattern of an epoch's line; a first epoch of few steps has no rate, since it compiled."""
    names = ["loss", "mae", "val_loss", "val_mae"] if validated else ["loss", "mae"]
    values = "".join(rf"  {name} (?:{NUMBER})" for name in names)
    return rf"{re.escape(title)}  5 steps  [\d.ms]+" + rate + values


@pytest.mark.parametrize("verbose", [1, 2, "auto", True])
def test_a_line_an_epoch_without_a_terminal(verbose, model, capsys):
    model.fit(X, Y, batch_size=8, epochs=2, verbose=verbose, validation_data=(X, Y))
    out = capsys.readouterr()
    assert out.err == "" and "\x1b" not in out.out and "\r" not in out.out
    lines = out.out.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(epoch_line("Epoch 1/2", validated=True), lines[0]), lines[0]
    assert re.fullmatch(epoch_line("Epoch 2/2", validated=True, rate=r"  [\d,]+ samples/s"), lines[1]), lines[1]


@pytest.mark.parametrize("verbose", [0, False])
def test_verbose_0_prints_nothing(verbose, model, capsys):
    model.fit(X, Y, batch_size=8, verbose=verbose, validation_data=(X, Y))
    model.evaluate(X, Y, batch_size=8, verbose=verbose)
    model.predict(X, batch_size=8, verbose=verbose)
    model.train_on_batch(X, Y), model.test_on_batch(X, Y), model.predict_on_batch(X)
    assert capsys.readouterr() == ("", "")


def test_evaluate_and_predict_print_a_line_each(model, capsys):
    model.evaluate(X, Y, batch_size=8)
    model.predict(X, batch_size=8)
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(epoch_line("Evaluate"), first), first
    assert re.fullmatch(r"Predict  5 steps  [\d.ms]+(  [\d,]+ samples/s)?", second), second


def test_epochs_are_aligned_and_numbered_from_initial_epoch(model, capsys):
    model.fit(X, Y, batch_size=8, initial_epoch=8, epochs=10)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Epoch  9/10  5 steps") and second.startswith("Epoch 10/10  5 steps")


@pytest.mark.parametrize(
    "share, shown", [(0.0, ""), (0.049, ""), (0.05, "  input-bound 5%"), (0.431, "  input-bound 43%")]
)
def test_waits_for_data_are_shown_where_they_matter(share, shown, monkeypatch, capsys):
    monkeypatch.setattr(progress, "HEARTBEAT_SECONDS", -1.0)
    bar = ProgressBar()
    bar.set_model(types.SimpleNamespace(input_bound=share))
    bar.set_params({"verbose": 2, "epochs": 1, "steps": 2, "rows": 8})
    bar.on_train_begin()
    bar.on_epoch_begin(0)
    bar.on_train_batch_end(0, {"loss": 0.5})  # a line is due, and comes with the next
    bar.on_train_batch_end(1, {"loss": 0.5})
    bar.on_epoch_end(0, {"loss": 0.5})
    bar.on_train_end()
    bar.on_test_begin()
    bar.on_test_end({"loss": 0.5})
    heartbeat, line, evaluation = capsys.readouterr().out.splitlines()
    rate = r"[\d,]+ samples/s"
    assert re.fullmatch(rf"Epoch 1/1  2/2 steps  {rate}{shown}  \d+ms left  loss 0.5000", heartbeat), heartbeat
    assert re.fullmatch(rf"Epoch 1/1  2 steps  \d+ms  {rate}{shown}  loss 0.5000", line), line
    assert "input-bound" not in evaluation


# A terminal --------------------------------------------------------------------------------------


class Terminal:
    """A pseudo-terminal in the place of stdout, and everything that was written to it."""

    def __init__(self, monkeypatch):
        self._ours, theirs = pty.openpty()
        self._file = io.TextIOWrapper(io.FileIO(theirs, "w"), write_through=True)
        self._chunks = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setattr("sys.stdout", self._file)
        monkeypatch.setattr("rich._console", None)

    def _read(self):
        while True:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # Linux says so when the other end is closed
                return
            if not data:
                return
            self._chunks.append(data)

    def close(self):
        self._file.close()
        self._reader.join()
        os.close(self._ours)
        return b"".join(self._chunks).decode()


def screen(output):
    """The lines that a person sees in the end: what was erased or written over is gone."""
    lines, row, column = [""], 0, 0
    for code, final, char in re.findall(r"\x1b\[([\d;?]*)([A-Za-z])|([^\x1b])", output):
        if char == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif char == "\r":
            column = 0
        elif char:
            lines[row] = lines[row].ljust(column)[:column] + char + lines[row][column + 1 :]
            column += 1
        elif final == "A":
            row = max(0, row - int(code or 1))
        elif final == "K":
            lines[row] = "" if code == "2" else lines[row][:column]
    return [line.rstrip() for line in lines if line.strip()]


def test_a_terminal_sees_a_bar_and_keeps_one_line_an_epoch(model, monkeypatch):
    terminal = Terminal(monkeypatch)
    model.fit(X, Y, batch_size=8, epochs=3, validation_data=(X, Y))
    model.evaluate(X, Y, batch_size=8)
    output = terminal.close()
    lines = screen(output)
    assert len(lines) == 4, lines
    for number, line in enumerate(lines[:3], 1):
        assert re.fullmatch(epoch_line(f"Epoch {number}/3", validated=True), line), line
    assert re.fullmatch(epoch_line("Evaluate"), lines[3]), lines[3]
    assert "━" in output and "0/5" in output  # the bar itself, and its steps
    assert output.count(HIDE) == output.count(SHOW) >= 1
    assert output.rindex(SHOW) > output.rindex(HIDE)


def test_a_terminal_sees_in_the_bar_that_data_are_waited_for(monkeypatch):
    terminal = Terminal(monkeypatch)
    bar = ProgressBar()
    bar.set_model(types.SimpleNamespace(input_bound=0.43))
    bar.set_params({"verbose": 1, "epochs": 1, "steps": 2})
    bar.on_train_begin()
    bar.on_epoch_begin(0)
    bar.on_train_batch_end(0, {"loss": 0.5})
    bar._bar.refresh()
    bar.on_train_end()
    output = terminal.close()
    assert "input-bound 43%" in output
    assert not any("input-bound" in line for line in screen(output))  # the bar is gone, and no epoch ended


@pytest.mark.parametrize("verbose", [0, 2])
def test_a_terminal_sees_no_bar_if_none_is_wanted(verbose, model, monkeypatch):
    terminal = Terminal(monkeypatch)
    model.fit(X, Y, batch_size=8, epochs=2, verbose=verbose)
    output = terminal.close()
    assert "\x1b" not in output
    assert len(output.splitlines()) == verbose


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_epoch_end", "on_test_begin", "on_epoch_begin"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_terminal_is_whole_after_an_exception(hook, error, model, monkeypatch):
    def fail(self, *arguments):
        raise error("stop")

    fails = type("Fails", (Callback,), {hook: fail})()
    terminal = Terminal(monkeypatch)
    # Behind the bar, so that the bar is drawn when the exception comes.
    callbacks = [kdist.callbacks.ProgressBar(), fails]
    with pytest.raises(error, match="stop"):
        model.fit(X, Y, batch_size=8, epochs=3, validation_data=(X, Y), callbacks=callbacks)
    output = terminal.close()
    assert output.count(HIDE) == output.count(SHOW) == 1
    assert output.rindex(SHOW) > output.rindex(HIDE)
    assert not any("━" in line for line in screen(output)), screen(output)
    for thread in [t for t in threading.enumerate() if "rich" in type(t).__module__]:
        thread.join(60)  # rich tells it to end, and does not wait for it
        assert not thread.is_alive()


# Small parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, text",
    [
        (0.0, "0.0000"),
        (1.23456, "1.2346"),
        (12345.6, "12345.6000"),
        (2e-5, "2.00e-05"),
        (-0.5, "-0.5000"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (np.float32(0.25), "0.2500"),
        (np.array([0.5, 1.0]), "[0.5000 1.0000]"),
    ],
)
def test_numbers(value, text):
    assert _number(value) == text


@pytest.mark.parametrize(
    "seconds, text",
    [(0.0123, "12ms"), (1.26, "1.3s"), (59.94, "59.9s"), (60, "1m00s"), (3599.7, "1h00m"), (7321, "2h02m")],
)
def test_durations(seconds, text):
    assert _duration(seconds) == text


def test_losses_come_first_and_validation_last():
    logs = {"accuracy": 0.5, "loss": 1.0, "p_loss": 2.0, "val_accuracy": 0.25, "val_loss": 3.0}
    assert _format(logs) == "loss 1.0000  p_loss 2.0000  accuracy 0.5000  val_loss 3.0000  val_accuracy 0.2500"
    assert _format(None) == ""
