"""Exit statuses of commands that run snippets, besides the program's own."""

LIMIT_STATUS = 124
"""A limit ended it, as timeout(1) has it."""
OUR_STATUS = 125
"""Mayfly, not the program, failed."""
