"""Prompts from a file, and the videos that are to be made of them: what benches, calibration and `generate` work through."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, shown
from ..storage.reading import Fields, parse, read_text
from .sampling import Request

PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ,.'()&+=_-]{0,179}")  # prompts that may be a file's name as they are
SEED_BITS = 63
SLUG = 60
MAX_PROMPTS = 1 << 26  # bytes of a file of prompts
MAX_ITEMS = 1_000_000  # videos of one job
LINE_END = re.compile(r"\r\n|\r|\n")  # not all that Python takes for one: a prompt may hold U+2028
LIKE = "demo/prompts.json is an example"


@dataclass(frozen=True)
class Item:
    """One video to make: sample number `index` of its prompt. The name of its file, without the suffix, is its own."""

    name: str
    index: int
    request: Request


def read_prompts(path: Path) -> list[tuple[str, int]]:
    """Prompts and seeds from a file: JSON as demo/prompts.json is, or a prompt a line, whose seeds are 0, 1, 2 …

    Raises:
        InputError: the file cannot be read, is no text in UTF-8, or holds no prompt.
    """
    text = read_text(path, MAX_PROMPTS)
    if path.suffix == ".json":
        found = [_listed(item, path) for item in _list(parse(text, str(path), LIKE), path)]
    else:
        found = [(line, number) for number, line in enumerate(_lines(text))]
    if not found:
        raise InputError(f"{path} holds no prompt; write one a line")
    return found


def read_lines(path: Path) -> list[str]:
    """The prompts of a file with one a line.

    Raises:
        InputError: the file cannot be read, is no text in UTF-8, or holds no prompt.
    """
    found = _lines(read_text(path, MAX_PROMPTS))
    if not found:
        raise InputError(f"{path} holds no prompt; write one a line")
    return found


def _lines(text: str) -> list[str]:
    return [line.strip() for line in LINE_END.split(text) if line.strip()]


def _list(data: Any, path: Path) -> list[Any]:
    if not isinstance(data, list):
        raise InputError(f"{path} holds a {type(data).__name__}, not a list of prompts; {LIKE}")
    return data


def _listed(item: Any, path: Path) -> tuple[str, int]:
    said = Fields(item, f"{path}: an item of the list", LIKE)
    prompt, seed = said.get("prompt", str), said.get("seed", int)
    if not prompt.strip():
        raise said.wrong("'prompt' is empty")
    return prompt, seed


def work_list(prompts: Iterable[str], samples: int, template: Request) -> list[Item]:
    """`samples` videos of every prompt; of one that stands there again, further ones.

    Args:
        template: the settings of every request.

    Raises:
        InputError: fewer than one sample, or more videos than one job can have.
    """
    prompts = list(prompts)
    if not 1 <= samples <= MAX_ITEMS // max(1, len(prompts)):
        raise InputError(
            f"--samples is {shown(samples)} of {len(prompts)} prompts; it must be at least 1, and a job has at most "
            f"{MAX_ITEMS:,} videos: share them out over several outputs"
        )
    items, counts, names = [], dict[str, int](), set[str]()
    for prompt in prompts:
        for _ in range(samples):
            index = counts[prompt] = counts.get(prompt, -1) + 1
            request = replace(template, prompt=prompt, seed=seed_of(prompt, index))
            name = file_name(prompt, index)
            if name.lower() in names:  # where capitals do not tell files apart
                name = file_name(prompt, index, plain=False)
            names.add(name.lower())
            items.append(Item(name, index, request))
    return items


def seed_of(prompt: str, index: int) -> int:
    """The seed of a prompt's sample number `index`: of nothing else, so that it is the same in every run and process."""
    digest = hashlib.sha256(f"{index}\n{prompt}".encode(errors="surrogatepass")).digest()
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
