"""Prompts from a file, and the videos that are to be made of them: what benches, calibration and `generate` work through."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InputError
from .sampling import Request

PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ,.'()&+=_-]{0,179}")  # prompts that may be a file's name as they are
SEED_BITS = 63
SLUG = 60


@dataclass(frozen=True)
class Item:
    """One video to make: sample number `index` of its prompt. The name of its file, without the suffix, is its own."""

    name: str
    index: int
    request: Request


def read_prompts(path: Path) -> list[tuple[str, int]]:
    """Prompts and seeds from a file: JSON as demo/prompts.json is, or a prompt a line, whose seeds are 0, 1, 2 …

    Raises:
        InputError: the file cannot be read, or holds no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            found = [(str(item["prompt"]), int(item["seed"])) for item in json.loads(text)]
        else:
            found = [(line.strip(), number) for number, line in enumerate(filter(str.strip, text.splitlines()))]
    except OSError as error:
        raise InputError(f"cannot read the prompts {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is no list of objects with 'prompt' and 'seed'; demo/prompts.json is an example") from None
    if not found:
        raise InputError(f"{path} holds no prompt")
    return found


def work_list(prompts: Iterable[str], samples: int, template: Request) -> list[Item]:
    """`samples` videos of every prompt; of one that stands there again, further ones.

    Args:
        template: the settings of every request.

    Raises:
        InputError: fewer than one sample.
    """
    if samples < 1:
        raise InputError(f"--samples is {samples}; it must be at least 1")
    items, counts, names = [], dict[str, int](), set[str]()
    for prompt in prompts:
        for _ in range(samples):
            index = counts[prompt] = counts.get(prompt, -1) + 1
            name = file_name(prompt, index)
            if name.lower() in names:  # where capitals do not tell files apart
                name = file_name(prompt, index, plain=False)
            names.add(name.lower())
            items.append(Item(name, index, replace(template, prompt=prompt, seed=seed_of(prompt, index))))
    return items


def seed_of(prompt: str, index: int) -> int:
    """The seed of a prompt's sample number `index`: of nothing else, so that it is the same in every run and process."""
    digest = hashlib.sha256(f"{index}\n{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


def file_name(prompt: str, index: int, plain: bool = True) -> str:
    """`PROMPT-INDEX`, as VBench names videos; of a prompt that is no file's name, its words and a digest of it."""
    if plain and PLAIN.fullmatch(prompt) and not prompt.endswith((".", " ")):
        return f"{prompt}-{index}"
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:SLUG].strip("-")
    return f"{words or 'video'}-{hashlib.sha256(prompt.encode()).hexdigest()[:10]}-{index}"


def share(items: Sequence[Item], rank: int, processes: int) -> Sequence[Item]:
    """The items of one of so many processes: every so many-th. The same whatever is finished already."""
    return items[rank::processes]
