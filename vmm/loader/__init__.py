"""Kernel file formats and boot data, as pure functions of bytes; `placing` alone reads files."""
