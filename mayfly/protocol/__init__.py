"""What the processes say to one another, without I/O: bytes in, messages out. An agent says it over
the channel, a vmm process in its report and over its control socket.
"""
