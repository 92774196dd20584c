"""Sentences that text encoders read when they calibrate: descriptions of videos, made from a small vocabulary, and plain
technical English. What matters is that many different tokens stand in many different surroundings.
"""

import json
import random
from pathlib import Path

WORDS = Path(__file__).parent / "sentences.json"


def sentences(count: int, seed: int = 0) -> list[str]:
    """Descriptions of videos; the same every time, no two alike."""
    words: dict[str, list[str]] = json.loads(WORDS.read_text(encoding="utf-8"))
    parts = {name: words[name] for name in ("who", "does", "where", "how")} | {"other": words["who"], "also": words["does"]}
    choose = random.Random(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        text = choose.choice(words["frames"]).format(**{name: choose.choice(of) for name, of in parts.items()})
        made[text[0].upper() + text[1:]] = None
    return list(made)


def plain_sentences() -> list[str]:
    """Technical English, from the documents of this repository."""
    found: list[str] = json.loads(WORDS.read_text(encoding="utf-8"))["plain"]
    return found
