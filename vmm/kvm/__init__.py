"""KVM through cffi's API mode: descriptors, ioctls, mappings. All raw pointers are here."""
