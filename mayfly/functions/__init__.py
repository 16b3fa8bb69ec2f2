"""Functions: code that stays loaded in guests and answers many requests."""
