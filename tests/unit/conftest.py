"""Settings for tests by property."""

import hypothesis

hypothesis.settings.register_profile("mayfly", deadline=None)  # a loaded host takes its time
hypothesis.settings.load_profile("mayfly")
