"""Functions of a fleet: what gateways and hosts do for them."""
