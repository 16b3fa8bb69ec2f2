"""The virtual machine monitor. It knows machines, devices and kernels, and nothing of snippets or
HTTP.
"""
