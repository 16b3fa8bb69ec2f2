"""The network behind a net device: what it may reach, and the back ends that carry frames."""
