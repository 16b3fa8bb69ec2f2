"""Gateways besides HTTP, which take requests for functions and give the answers back."""
