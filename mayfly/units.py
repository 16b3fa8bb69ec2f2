"""Units of sizes, in bytes."""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
PAGE = 4096  # Of memory, a host's and a guest's
