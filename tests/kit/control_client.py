"""The other end of a machine's control socket, for a thread that may wait."""

import socket
from collections.abc import Sequence

from mayfly.errors import GuestError
from mayfly.protocol.control import MESSAGE_LIMIT, Answer, Request, accept
from mayfly.protocol.report import pack


class ControlClient:
    """The other side, for a thread that may wait. The caller closes the socket."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control

    def ask(self, request: Request, descriptors: Sequence[int] = ()) -> Answer:
        """Have a request carried out; the answer. Raises as `accept`."""
        try:
            socket.send_fds(self._control, [pack(request)], descriptors)
        except OSError as caught:
            raise GuestError(f"the machine takes no requests: {caught.strerror}") from caught
        return self.accept()

    def accept(self) -> Answer:
        """Wait for the answer to a request that was sent; as `ask`."""
        try:
            data = self._control.recv(MESSAGE_LIMIT)
        except OSError as caught:
            raise GuestError(f"the machine does not answer: {caught.strerror}") from caught
        return accept(data)
