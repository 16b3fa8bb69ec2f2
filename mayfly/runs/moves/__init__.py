"""Moving a run under way to another server, with its machine (docs/moves.md)."""
