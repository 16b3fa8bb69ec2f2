"""Doors: by which a request comes in, who sends it, what it may ask for, and who is told."""
