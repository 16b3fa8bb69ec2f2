"""Speaks to a server as SnapFaaS's own `client` does: `snapfaas_client.py HOST:PORT FILE`.

It sends every line of the file as it is, newline included, in a frame, `time` milliseconds after
the one before. A thread reads answers and prints them, each a line of JSON's text. It ends when as
many answers have come as requests were sent.
"""

import json
import socket
import struct
import sys
import threading
import time
from pathlib import Path

LENGTH = struct.Struct(">Q")


def read_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def receive(connection: socket.socket, answers: list[str], came: threading.Condition) -> None:
    while True:
        try:
            (size,) = LENGTH.unpack(read_exactly(connection, LENGTH.size))
            if not size:
                continue  # theirs takes that for an error, and reads on
            text = read_exactly(connection, size).decode()
        except (EOFError, OSError):
            return
        print(json.dumps(text), flush=True)
        with came:
            answers.append(text)
            came.notify()


def main(address: str, path: str) -> None:
    host, _, port = address.rpartition(":")
    answers: list[str] = []
    came = threading.Condition()
    sent = 0
    with socket.create_connection((host, int(port))) as connection, Path(path).open() as lines:
        threading.Thread(target=receive, args=(connection, answers, came), daemon=True).start()
        before = 0.0
        for line in lines:
            due = json.loads(line)["time"]
            time.sleep((due - before) / 1000)
            before = due
            data = line.encode()
            connection.sendall(LENGTH.pack(len(data)) + data)
            sent += 1
        with came:
            if not came.wait_for(lambda: len(answers) >= sent, timeout=60):
                sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
