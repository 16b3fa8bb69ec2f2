"""Benchmarks: starts, snapshots, the network, the image generator."""
