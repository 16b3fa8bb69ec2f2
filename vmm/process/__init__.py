"""The vmm process: the zygote that forks it, and what it does."""
