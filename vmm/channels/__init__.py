"""What carries the channel: bytes between a socket and the guest. Their meaning is for its ends."""
