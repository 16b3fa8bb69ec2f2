"""The HTTP service, over a Unix socket and TCP."""
