"""The smallest function: JSON in, JSON out."""

from typing import Any


def handle(event: Any) -> dict[str, Any]:
    """Greet `name`; what else the event has comes back."""
    event = event if isinstance(event, dict) else {}
    print("greeting", event.get("name", "nobody in particular"))  # to the function's log
    return {**event, "message": f"Hello, {event.get('name', 'world')}!"}
