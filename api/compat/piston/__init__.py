"""Piston v2: sources and their inputs, run at once or over a WebSocket."""
