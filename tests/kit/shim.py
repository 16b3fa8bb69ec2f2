"""A function's shim as plain as can be, for the tests of the agent: what a handler of it does is
appended to `HEAD`, and all of it is a program for Python.
"""

from mayfly.protocol import frames as p

HEAD = b"""
import os, struct, sys, threading, time

ANSWER, EXCEPTION = 1, 2

def take(count):
    data = b""
    while len(data) < count:
        piece = os.read(3, count - len(data))
        if not piece:
            sys.exit(0)
        data += piece
    return data

def hear():
    kind, id, count = struct.unpack("<BIH", take(7))
    content_type = take(count)
    (size,) = struct.unpack("<I", take(4))
    return kind, id, content_type, take(size)

def message(kind, id=0, content_type=b"", data=b"", us=0, size=None):
    size = len(data) if size is None else size
    return struct.pack("<BIQH", kind, id, us, len(content_type)) + content_type + struct.pack("<I", size) + data

def send(data):
    while data:
        data = data[os.write(3, data):]

def say(*args, **fields):
    send(message(*args, **fields))

def serve(handle):
    say(0)
    while True:
        kind, id, content_type, data = hear()
        if kind == 1:
            handle(id, content_type, data)
"""
ECHO = b"""
serve(lambda id, content_type, data: say(ANSWER, id, content_type, data, us=len(data)))
"""
NAME = "shim.py"


def function(*, output: int = 1 << 20) -> p.Step:
    """The step that is such a function."""
    return p.Step("function", ("python3", "-I", "-S", NAME), output=output, function=True)
