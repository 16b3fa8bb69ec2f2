"""Devices of a machine. They know guest memory and bytes, and open nothing."""
