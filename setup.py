"""Adds to pyproject.toml the one thing that it cannot say: the cffi module."""

from setuptools import setup

setup(cffi_modules=["vmm/kvm/build_kvm.py:ffi"])
