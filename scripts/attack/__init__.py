"""Hostile snippets against the current build, and what became of them."""
