"""`sedialect verify`: all checks of a quantized model's files, and no model."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config import SeDialectConfig
from ..errors import InputError, SeDialectError, shown
from ..storage import hub
from ..storage.paths import expanded, is_file, is_folder
from ..storage.reading import Fields, read_object
from .format import EQUALIZER, SCALE, Contents, check_settings, layer_shapes, read_contents, read_headers
from .integrity import check_codes, check_covered, check_undamaged, damaged_keys
from .record import DAMAGED, RECORD

SUFFIX = ".safetensors"
CONFIG = "config.json"
PART = re.compile(r"-\d{5}-of-\d{5}$")  # in the names of a model's files
INDEX = re.compile(r"(.+)\.safetensors\.index(\..+)?\.json")


@dataclass(frozen=True)
class Verified:
    """One quantized model: where it is, how many tensors and layers it has, and what is wrong, or ""."""

    where: str
    tensors: int
    layers: int
    bytes: int
    wrong: str


@dataclass(frozen=True)
class _Group:
    """The files of one model: those with its weights, and what else a loader reads there."""

    where: str
    files: tuple[Path, ...]
    index: Path | None = None
    config: Path | None = None


def verify(model: str) -> list[Verified]:
    """Check every quantized model in a file, a folder and those below it, or a repository on the Hub.

    Raises:
        InputError: there is none, or the repository cannot be had.
    """
    found = [_verified(group) for group in _groups(model) if _is_quantized(group.files)]
    if not found:
        raise InputError(f"{model} holds no model that sedialect has quantized; pass the folder, file or repository of one")
    return found


def _groups(model: str) -> Iterator[_Group]:
    """Files that belong to one model: those of one name in one folder, by where they lie."""
    place = expanded(model)
    if is_file(place):
        yield _Group(model, (place,))
        return
    if is_folder(place):
        paths = sorted(path for path in place.rglob("*") if _is_read(path.name))
    elif hub.is_repo_id(model):
        paths, commit = [], None
        for name in sorted(name for name in map(hub.check_file_name, hub.list_files(model)) if _is_read(name)):
            path, commit = hub.download(model, name, revision=commit)
            paths.append(path)
    else:
        raise InputError(f"{shown(model)} is neither a file, a folder nor the name of a repository on the Hub; check it")
    names: dict[tuple[Path, str], list[Path]] = {}
    for path in paths:
        if path.name.endswith(SUFFIX):
            names.setdefault((path.parent, PART.sub("", path.name.removesuffix(SUFFIX))), []).append(path)
    for (folder, stem), files in names.items():
        many = sum(other == folder for other, _ in names) > 1
        yield _Group(
            str(folder / f"{stem}{SUFFIX}" if many else folder),
            tuple(files),
            next((path for path in paths if path.parent == folder and _indexed(path.name) == stem), None),
            next((path for path in paths if path == folder / CONFIG and not many), None),
        )


def _is_read(name: str) -> bool:
    name = name.rpartition("/")[2]
    return name.endswith(SUFFIX) or name == CONFIG or _indexed(name) is not None


def _indexed(name: str) -> str | None:
    """The name of the files that an index with this name is of, as diffusers and transformers put variants into both."""
    found = INDEX.fullmatch(name)
    return found and f"{found[1]}{found[2] or ''}"


def _is_quantized(files: Iterable[Path]) -> bool:
    """Whether a record is there; files that cannot be read may have been one's."""
    try:
        return RECORD in read_headers(files)[0]
    except InputError:
        return True


def _verified(group: _Group) -> Verified:
    size = sum(path.stat().st_size for path in group.files if path.is_file())
    tensors, layers, wrong = 0, 0, ""
    try:
        contents = read_contents(group.files)
        record = contents.record
        tensors, layers = len(contents.tensors), len(record.precisions)
        _check_layers(contents)
        check_codes(record, contents.file_of)
        _check_beside(group, contents)
        if not record.digests:
            raise InputError(
                f"{group.files[0]} has no digests, since another program has written it; save it again with sedialect"
            )
        check_covered(record, contents.tensors, str(group.files[0]))
        check_undamaged(damaged_keys(record.digests, contents.file_of), contents.file_of)
    except SeDialectError as error:
        wrong = str(error)
    return Verified(group.where, tensors, layers, size, wrong)


def _check_layers(contents: Contents) -> None:
    """Compare the layers of the record with the tensors that are there: a loader compares both with the model.

    Raises:
        InputError: a layer lacks a tensor, or one is of other sizes; or a tensor is of no layer.
    """
    record, tensors = contents.record, contents.tensors
    for name in record.precisions:
        weight = tensors.get(f"{name}.weight")
        rows, packed = weight.shape if weight is not None and len(weight.shape) == 2 else (0, 0)
        for suffix, shape in layer_shapes(2 * packed, rows, record.block_size).items():
            stored = tensors.get(name + suffix)
            if stored is None or (stored.dtype, stored.shape) != ("U8", shape) or not rows:
                raise _of_layer(contents, name, suffix)
        exponents = tensors.get(name + EQUALIZER)
        if (exponents is not None and exponents.shape == (2 * packed,)) != (name in record.equalized):
            raise _of_layer(contents, name, EQUALIZER)
    for key in tensors:
        if key.endswith(SCALE) and key.removesuffix(SCALE) not in record.precisions:
            raise _of_layer(contents, key.removesuffix(SCALE), SCALE)


def _of_layer(contents: Contents, name: str, suffix: str) -> InputError:
    file = contents.tensors[RECORD].file
    return InputError(f"{file}: {shown(name + suffix, 200)} is not as {RECORD!r} has the layer; {DAMAGED}")


def _check_beside(group: _Group, contents: Contents) -> None:
    """Compare what a loader reads beside the weights with them: without it, sound weights are not loaded, or others are.

    Raises:
        InputError: the index names other keys or files, or config.json is of another model.
        ConfigError: the settings in config.json cannot be read.
    """
    if group.index is not None:
        said = read_object(group.index, remedy=DAMAGED).get("weight_map")
        if said != {key: Path(file).name for key, file in contents.file_of.items()}:
            raise InputError(f"{group.index} does not name each tensor with the file that holds it; {DAMAGED}")
    elif len(group.files) > 1:
        raise InputError(f"{group.where} has {len(group.files)} files of weights and no index that names them; {DAMAGED}")
    if group.config is not None:
        settings = Fields(read_object(group.config, remedy=DAMAGED), str(group.config), DAMAGED).get(
            "quantization_config", dict
        )
        check_settings(contents, SeDialectConfig.from_dict(settings))
