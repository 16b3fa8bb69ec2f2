"""What pyproject.toml cannot say: the cffi module."""

from setuptools import setup

setup(cffi_modules=["mayfly/vmm/kvm/build_kvm.py:ffi"])
