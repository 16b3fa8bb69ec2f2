"""KVM through cffi in out-of-line API mode: descriptors, ioctls and mappings. The only place with
raw pointers.
"""
