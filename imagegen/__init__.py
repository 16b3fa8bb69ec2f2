"""OCI image in, initramfs and manifest out. Nothing of a layer is ever written to the host's file
system as a file of its own.
"""
