"""Many hosts behind one address: what they say to each other, and the two ends of it."""
