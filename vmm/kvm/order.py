"""Fences between a device's accesses to a ring and its driver's, on another processor.

x86 needs the full one only; Arm orders nothing by itself (Arm ARM, B2.3).
"""

from mayfly.vmm.kvm._kvm import lib

acquire = lib.fence_acquire
"""No later load is done before an earlier load: after an index, before what it stands for."""
release = lib.fence_release
"""No later store is seen before an earlier one: after elements, before their index."""
full = lib.fence_full  # Nor does a later load overtake an earlier store
