from typing import Any

class ffi:  # noqa: N801 (its name in C)
    NULL: Any
    errno: int
    @staticmethod
    def new(kind: str, init: Any = ...) -> Any: ...
    @staticmethod
    def cast(kind: str, value: Any) -> Any: ...
    @staticmethod
    def buffer(pointer: Any, size: int = ...) -> Any: ...
    @staticmethod
    def from_buffer(kind: str, data: Any) -> Any: ...
    @staticmethod
    def sizeof(kind: Any) -> int: ...

lib: Any
