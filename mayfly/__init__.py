"""What every part of Mayfly shares: errors, folders, files written whole, the manifest, the
channel's frames. No I/O loop, no KVM.
"""

__version__ = "0.1.0"
