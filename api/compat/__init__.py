"""Contracts of others: their requests become runs of ours, and results go back in their form."""
