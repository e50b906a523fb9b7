"""RemoteMonitor: what a real server on this machine is sent."""

import http.server
import json
import threading
import urllib.parse

import numpy as np
import pytest

from kdist.callbacks import RemoteMonitor
from kdist.errors import ConfigError


class Handler(http.server.BaseHTTPRequestHandler):
    """Keeps requests; a path that ends in a number is answered with it."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.requests.append((self.path, dict(self.headers), body))
        last = self.path.rstrip("/").split("/")[-1]
        self.send_response(int(last) if last.isdecimal() else 200)
        self.end_headers()

    def log_message(self, format, *args):
        """Says nothing."""


@pytest.fixture
def server(monkeypatch):
    """A server: its `root`, and the `requests` that it got."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = []
        server.root = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


LOGS = {"loss": np.float32(0.5), "acc": 1, "f1": np.array([0.5, np.nan])}
SENT = {"epoch": 3, "loss": 0.5, "acc": 1.0, "f1": [0.5, "nan"]}


def test_a_form(server):
    RemoteMonitor(server.root, field="logs").on_epoch_end(3, LOGS)
    ((path, headers, body),) = server.requests
    assert path == "/publish/epoch/end/"
    assert headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert {name: json.loads(text) for name, text in urllib.parse.parse_qsl(body)} == {"logs": SENT}


def test_json_and_headers(server):
    monitor = RemoteMonitor(server.root, "/deep/", send_as_json=True, headers={"X-Run": "digits"})
    monitor.on_epoch_end(3, LOGS)
    ((path, headers, body),) = server.requests
    assert (path, headers["Content-Type"], headers["X-Run"]) == ("/deep/", "application/json", "digits")
    assert json.loads(body) == SENT


def test_a_real_run(server, make_model, data):
    monitor = RemoteMonitor(server.root, send_as_json=True)
    history = make_model().fit(*data, validation_data=data, epochs=2, verbose=0, callbacks=monitor).history
    sent = [json.loads(body) for _, _, body in server.requests]
    assert sent == [{"epoch": e, **{name: values[e] for name, values in history.items()}} for e in (0, 1)]


@pytest.mark.parametrize("status", [404, 500])
def test_a_server_that_refuses_costs_a_warning(server, status):
    with pytest.warns(UserWarning, match=f"refused the logs of epoch 3: HTTP Error {status}"):
        RemoteMonitor(server.root, f"/{status}/").on_epoch_end(3, LOGS)


def test_a_server_that_is_not_there_costs_a_warning(server):
    server.server_close()
    with pytest.warns(UserWarning, match=f"Could not reach the RemoteMonitor server at {server.root}"):
        RemoteMonitor(server.root).on_epoch_end(3, LOGS)


def test_other_processes_are_silent(server, monkeypatch):
    monkeypatch.setattr("kdist.callbacks.remote.is_main_process", lambda: False)
    RemoteMonitor(server.root).on_epoch_end(3, LOGS)
    assert server.requests == []


@pytest.mark.parametrize("root", ["localhost:9000", "file:///etc", ""])
def test_the_address_is_checked(root):
    with pytest.raises(ConfigError, match="root must begin with http:// or https://"):
        RemoteMonitor(root)
