"""An emulated KVM host, for machines whose own KVM does not run Linux guests."""
