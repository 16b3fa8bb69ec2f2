"""Roots, compilers, kernels and OCI images out of Debian packages."""
