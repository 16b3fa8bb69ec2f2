"""The virtual machine monitor: machines, devices and kernels; nothing of snippets or HTTP."""
