"""Handlers of signals, set at little cost."""

import _signal  # type: ignore[import-not-found]
from collections.abc import Callable
from typing import Any

DEFAULT: Any = _signal.SIG_DFL
handle: Callable[[int, Any], Any] = _signal.signal
"""As signal.signal, which looks up the new and the old handler in enumerations: 60 pages that each
machine would write. It takes DEFAULT, not signal.SIG_DFL.
"""
