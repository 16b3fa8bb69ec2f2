"""Snapshots on disk: what is there, and how they are made."""
