"""A machine with an agent in it: the only place that starts one and speaks with it."""
