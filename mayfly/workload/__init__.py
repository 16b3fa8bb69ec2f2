"""Workloads of functions: make one, send it to a server, report what came back."""
