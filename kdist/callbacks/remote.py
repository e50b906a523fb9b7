"""RemoteMonitor: the logs of each epoch to an HTTP server."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request

from kdist.callbacks.base import Callback
from kdist.callbacks.loggers import jsonable, plain
from kdist.callbacks.messages import warn
from kdist.distribution import is_main_process
from kdist.errors import ConfigError
from kdist.typing import Logs

TIMEOUT_SECONDS = 10.0
"""A server that does not answer holds training up for so long an epoch, and no longer."""


class RemoteMonitor(Callback):
    """Posts ``{"epoch": ..., "loss": ..., ...}`` to a server at the end of each epoch, from process 0.

    A server that cannot be reached, or does not take it, costs a warning.

    Args:
        root: The server, ``http://`` or ``https://``; "http://localhost:9000" by default.
        path: What is appended to it; "/publish/epoch/end/" by default.
        field: The field of the form that holds the JSON; "data" by default.
        headers: Further HTTP headers; none by default.
        send_as_json: Whether the body is the JSON itself, not a form; False by default.

    Raises:
        ConfigError: `root` is no address of a web server.

    Example:
        >>> monitor = RemoteMonitor("http://localhost:9000", send_as_json=True)
        >>> monitor.url
        'http://localhost:9000/publish/epoch/end/'
    """

    def __init__(
        self,
        root: str = "http://localhost:9000",
        path: str = "/publish/epoch/end/",
        field: str = "data",
        headers: dict[str, str] | None = None,
        send_as_json: bool = False,
    ) -> None:
        super().__init__()
        if not root.startswith(("http://", "https://")):
            raise ConfigError(f"root must begin with http:// or https://. Received: {root!r}.")
        self.root, self.path = root, path
        self.field = field
        self.headers = headers
        self.send_as_json = send_as_json

    @property
    def url(self) -> str:
        """Where it posts to."""
        return self.root + self.path

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Posts the logs."""
        if not is_main_process():
            return
        text = json.dumps(jsonable({"epoch": epoch, **{name: plain(value) for name, value in (logs or {}).items()}}))
        body = text if self.send_as_json else urllib.parse.urlencode({self.field: text})
        kind = "application/json" if self.send_as_json else "application/x-www-form-urlencoded"
        headers = {"Content-Type": kind, **(self.headers or {})}
        request = urllib.request.Request(self.url, body.encode(), headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
                return
        except urllib.error.HTTPError as error:
            error.close()
            warn(f"The RemoteMonitor server at {self.url} refused the logs of epoch {epoch}: {error}.")
        except (OSError, http.client.HTTPException) as error:
            warn(f"Could not reach the RemoteMonitor server at {self.root}: {error}.")
