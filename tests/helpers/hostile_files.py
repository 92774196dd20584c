"""A folder of hostile files: `python tests/helpers/hostile_files.py FOLDER`. Each class is made from a sound quantized
model, book or calibration by changes that a forger, a bad disk or a careless program would make. Tests load them, and
`hostile_table.py` counts what becomes of them.
"""

import copy
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from damaged import WEIGHTS, change_record, change_tensors, flip, put_record, record_of
from tiny_models import TINY

from sedialect import Formatbook, SeDialectConfig
from sedialect.sedialect_core.calibration.cache import CalibrationCache
from sedialect.sedialect_core.checkpoint.skeleton import skeleton
from sedialect.sedialect_core.checkpoint.source import find_source

DEEP = "[" * 100_000 + "]" * 100_000
VALUES: tuple[Any, ...] = (
    None, [], {}, "", "x", "x" * 5000, "../../x", "someone/repo", 0, -1, 7, 10**9, 10**400, 1.5, True, [[]], ["a", 1],
    {"a": []}, [None],
)  # fmt: skip
TEXTS = (
    "", "{", "[]", "null", '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1e999}', '{"a": ' + "9" * 5000 + "}",
    '{"a": ' + DEEP + "}", "\ud83d",
)  # fmt: skip
CALIBRATION = {
    "format_version": 1,
    "fingerprint": dict.fromkeys(("weights", "model", "model_class", "prompts", "prompt_count", "date"), "x"),
    "resolution": [64, 64, None],
    "inputs": [{"component": "transformer", "layers": ["blocks.0"], "width": 64, "stream": "video", "diagonal": False}],
}


@dataclass(frozen=True)
class Case:
    """One hostile folder, and what reads it. `same` says whether what was read is what was sound."""

    group: str
    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    same: Callable[[Any], bool]


class Sound:
    """A quantized model, its 16-bit original, and what they hold."""

    def __init__(self, folder: Path) -> None:
        self.plain, self.quantized = folder / "plain", folder / "quantized"
        torch.manual_seed(0)
        model = TINY["WanTransformer3DModel"]()[0]
        self.cls = type(model)
        model.save_pretrained(self.plain)
        self.cls.from_pretrained(
            self.plain, quantization_config=SeDialectConfig(formatbook="dialectfp4-16")
        ).save_pretrained(self.quantized)
        self.state = self.cls.from_pretrained(self.quantized).state_dict()
        self.header = int.from_bytes((self.quantized / WEIGHTS).read_bytes()[:8], "little") + 8
        self.size = (self.quantized / WEIGHTS).stat().st_size

    def load(self, folder: Path) -> Any:
        return self.cls.from_pretrained(folder, local_files_only=True)

    def same(self, model: Any) -> bool:
        found = model.state_dict()
        return found.keys() == self.state.keys() and all(torch.equal(found[key], self.state[key]) for key in found)


def cases(sound: Sound, flips: int = 240) -> Iterator[Case]:
    """All of them, by class."""
    yield from _tensors(sound, flips)
    yield from _records(sound)
    yield from _settings(sound)
    yield from _books()
    yield from _descriptions(sound)
    yield from _calibrations()


def _model(sound: Sound, group: str, name: str, change: Callable[[Path], None]) -> Case:
    def make(folder: Path) -> None:
        shutil.copytree(sound.quantized, folder, dirs_exist_ok=True)
        change(folder)

    return Case(group, name, make, sound.load, sound.same)


def _tensors(sound: Sound, flips: int) -> Iterator[Case]:
    chance = random.Random(0)
    for group, low, high in (
        ("bit flips in tensors", sound.header, sound.size),
        ("bit flips in the header", 0, sound.header),
    ):
        for offset in chance.sample(range(low, high), min(flips, high - low)):
            yield _model(sound, group, str(offset), lambda folder, offset=offset: flip(folder / WEIGHTS, offset))
    for part in range(1, 21):
        length = sound.size * part // 21

        def cut(folder: Path, length: int = length) -> None:
            (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:length])

        yield _model(sound, "files cut off", str(length), cut)
    names = [key.removesuffix(".weight_meta") for key in sound.state if key.endswith(".weight_meta")]
    for name in names:
        for what, value in (("ids", 16), ("ids", 31), ("scale", float("nan")), ("scale", 0.0), ("scale", -1.0)):

            def forge(folder: Path, name: str = name, what: str = what, value: float = value) -> None:
                def change(state: dict[str, torch.Tensor]) -> None:
                    if what == "ids":
                        state[f"{name}.weight_meta"][-1, -1] = int(value)
                    else:
                        state[f"{name}.weight_scale"].view(torch.float32)[-1] = value

                change_tensors(folder, change, seal=True)

            yield _model(sound, "forged ids and scales, digests made to fit", f"{name} {what} {value}", forge)


def _records(sound: Sound) -> Iterator[Case]:
    for name, text in _json_changes(_record(sound)):

        def make(folder: Path, text: str = text) -> None:
            change_tensors(folder, lambda state: put_record(state, text.encode("utf-8", "replace").decode()))

        yield _model(sound, "records", name, make)

    def twice(folder: Path) -> None:
        change_tensors(folder, lambda state: change_record(state, layers={"w4a4": ["a"], "w4a8": ["a"]}))

    yield _model(sound, "records", "one layer twice", twice)


def _record(sound: Sound) -> dict[str, Any]:
    from safetensors.torch import load_file

    return record_of(load_file(sound.quantized / WEIGHTS))


def _settings(sound: Sound) -> Iterator[Case]:
    for key in SeDialectConfig().to_dict():
        for number, value in enumerate(VALUES):
            data = SeDialectConfig().to_dict() | {key: value}
            yield Case("settings", f"{key} {number}", _nothing, _call(SeDialectConfig.from_dict, data), _round_trip)
    for pattern in ("(.+)+!", "(a|aa)+$", "^(.|..)+[!?]", "(" * 500, "(?:a{1,999}){1,999}"):
        for key, value in (("skip", [pattern]), ("layer_precisions", [[pattern, "w4a8"]])):
            change = _config_change(key, value)
            yield _model(sound, "patterns and book names in settings", f"{key} {pattern[:20]}", change)
    for name in ("someone/repo", "/etc/passwd", "/dev/zero", "../x.json", "auto", ""):
        yield _model(sound, "patterns and book names in settings", f"formatbook {name}", _config_change("formatbook", name))


def _config_change(key: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] |= {key: value} | ({"formatbook_digest": ""} if key == "formatbook" else {})
        (folder / "config.json").write_text(json.dumps(config))

    return change


def _books() -> Iterator[Case]:
    book = Formatbook.builtin("sedialect-32")

    def same(found: Formatbook) -> bool:
        return bool(found.digest == book.digest)

    for name, text in _json_changes(book.to_dict()):
        write = _write("book.json", text)
        yield Case("formatbooks", name, write, lambda folder: Formatbook.from_file(folder / "book.json"), _a_book)
    chance = random.Random(1)

    def write_and_flip(folder: Path, part: float, file: str) -> None:
        book.save_pretrained(folder)
        flip(folder / file, int(part * (folder / file).stat().st_size))

    for file in ("formatbook.json", "formatbook.safetensors"):
        for _ in range(60):
            part = chance.random()
            make = lambda folder, part=part, file=file: write_and_flip(folder, part, file)  # noqa: E731
            yield Case("formatbook folders, a bit flipped", f"{file} {part}", make, Formatbook.from_pretrained, same)


def _descriptions(sound: Sound) -> Iterator[Case]:
    config = json.loads((sound.plain / "config.json").read_text())
    for name, text in _json_changes(config, deep=False):

        def make(folder: Path, text: str = text) -> None:
            shutil.copytree(sound.plain, folder, dirs_exist_ok=True)
            _write("config.json", text)(folder)

        yield Case("model descriptions", name, make, _outline, _anything)
    for name, text in _json_changes({"metadata": {}, "weight_map": {"a": "b.safetensors"}}):

        def make_index(folder: Path, text: str = text) -> None:
            shutil.copy(sound.plain / "config.json", folder)
            _write(f"{WEIGHTS}.index.json", text)(folder)

        yield Case("indexes", name, make_index, lambda folder: find_source(str(folder)), _anything)


def _outline(folder: Path) -> Any:
    (component,) = find_source(str(folder)).components
    return skeleton(component.config, "here")


def _calibrations() -> Iterator[Case]:
    for name, text in _json_changes(CALIBRATION):
        yield Case("calibrations", name, _write("calibration.json", text), CalibrationCache.load, _inside_its_folder)


def _inside_its_folder(cache: CalibrationCache) -> bool:
    assert cache.folder is not None
    return all(cache._path(entry).resolve().parent == cache.folder.resolve() for entry in cache.inputs)


def _json_changes(data: dict[str, Any], deep: bool = True) -> Iterator[tuple[str, str]]:
    """Every value of a JSON object replaced by every kind of value, and texts that are no sound JSON."""
    for number, text in enumerate(TEXTS):
        yield f"text {number}", text
    for path in _paths(data, deep):
        for number, value in enumerate(VALUES):
            changed = copy.deepcopy(data)
            at: Any = changed
            for step in path[:-1]:
                at = at[step]
            at[path[-1]] = value
            yield f"{'.'.join(map(str, path))} {number}", json.dumps(changed)
    for key in data:
        yield f"without {key}", json.dumps({name: value for name, value in data.items() if name != key})
    yield "one key more", json.dumps({**data, "more": 1})


def _paths(data: Any, deep: bool) -> Iterator[tuple[Any, ...]]:
    """The place of every value, the first two of a list alone."""
    entries = data.items() if isinstance(data, dict) else enumerate(data[:2]) if isinstance(data, list) else ()
    for number, (key, value) in enumerate(entries):
        if isinstance(data, dict) and number > 24:
            return
        yield (key,)
        if deep:
            yield from ((key, *rest) for rest in _paths(value, deep))


def _write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(text.encode("utf-8", "surrogatepass")) and None


def _nothing(folder: Path) -> None:
    pass


def _call(function: Callable[[Any], Any], value: Any) -> Callable[[Path], Any]:
    return lambda folder: function(value)


def _anything(found: Any) -> bool:
    return found is not None


def _a_book(book: Formatbook) -> bool:
    """Whatever else it says, it is within the rules, and comes back."""
    return Formatbook.from_dict(book.to_dict()) == book and len(book.half_units) <= 32


def _round_trip(config: SeDialectConfig) -> bool:
    return SeDialectConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def main() -> None:
    """Write all of them below a folder."""
    folder = Path(sys.argv[1])
    sound = Sound(folder / "sound")
    for number, case in enumerate(cases(sound)):
        place = folder / case.group.replace(" ", "-") / f"{number:05d}"
        place.mkdir(parents=True)
        case.make(place)


if __name__ == "__main__":
    main()
