"""The network behind a machine's net device: what it may reach, and the back ends that carry its
frames.
"""
