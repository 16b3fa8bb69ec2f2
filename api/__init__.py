"""Snippets in, output out: runs, their machines and output sockets, the HTTP service, and the
command line.
"""
