"""The channel between host and guest, without I/O: bytes in, messages out."""
