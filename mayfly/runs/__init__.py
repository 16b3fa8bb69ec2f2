"""Runs of snippets: their records, output sockets and life."""
