"""How friendly is a text? Its words' scores, with negations and strengthening words before them.

The lexicon is read when the function is loaded: a guest that starts from its snapshot has it.
"""

import json
import re
from pathlib import Path
from typing import Any

WORD = re.compile(r"[a-z']+")
LEXICON: dict[str, float] = json.loads(Path(__file__).with_name("lexicon.json").read_text())
NEGATIONS = {"not", "no", "never", "hardly", "isn't", "wasn't", "don't", "didn't", "can't"}
STRONGER = {"very": 1.5, "really": 1.5, "so": 1.3, "extremely": 2.0, "quite": 1.2, "slightly": 0.5}
REACH = 3
"""Words before another that may change its meaning."""
REVIEWS = (
    "A really wonderful little machine. It starts fast and never fails.",
    "Not bad at all, and the support was very kind.",
    "Terrible. It broke on the first day, and nobody answered my angry letters.",
    "It is a box. It has four sides.",
)


def handle(event: Any) -> dict[str, Any]:
    """Score a text, the field `text`, or a review of our own."""
    if isinstance(event, str):
        event = {"text": event}
    event = event if isinstance(event, dict) else {}
    text = event.get("text") or REVIEWS[event.get("request", 0) % len(REVIEWS)]
    found = score(text)
    label = "positive" if found > 0.5 else "negative" if found < -0.5 else "neutral"
    return {**event, "score": round(found, 3), "label": label}


def score(text: str) -> float:
    """The sum of the words' scores."""
    words = WORD.findall(text.lower())
    total = 0.0
    for index, word in enumerate(words):
        value = LEXICON.get(word, 0.0)
        for earlier in words[max(0, index - REACH) : index] if value else ():
            if earlier in NEGATIONS:
                value = -0.7 * value
            value *= STRONGER.get(earlier, 1.0)
        total += value
    return total
