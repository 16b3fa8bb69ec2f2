"""Installed images and their manifests."""
