"""Whether the tensors of a checkpoint are what its record says, and can be computed with.

Codes are looked at before the first layer is made: kernels index tables by them. Digests of all tensors are compared while a
loader reads the same files, in threads of their own, so that loading takes no longer.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from ...kernels.transform import LARGEST_EXPONENT
from ..errors import InputError
from ..formatbook import Formatbook
from ..storage.digests import begun_digest
from ..storage.reading import parse_object
from .record import DAMAGED, RECORD, Record

DIALECT_MASK = 31
IDS = 32  # that five bits can hold
CHUNK = 1 << 20  # bytes looked at together, so that no copy of a large tensor is made
THREADS = 2
# What torch calls the types of safetensors.
TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


def check_meta(meta: torch.Tensor, book: Formatbook, where: str) -> None:
    """Compare the dialect ids of a weight's blocks, uint8 [N, K/B], with the number of dialects of its book.

    Raises:
        InputError: one is too large.
    """
    if len(book.dialects) == IDS:
        return
    scratch = torch.empty(min(CHUNK, meta.numel()), dtype=torch.uint8)
    for part in meta.detach().cpu().reshape(-1).split(CHUNK):
        most = int(torch.bitwise_and(part, DIALECT_MASK, out=scratch[: part.numel()]).max())
        if most >= len(book.dialects):
            raise InputError(
                f"{where} names the dialect {most}, and the formatbook {book.name!r} has {len(book.dialects)}; {DAMAGED}"
            )


def check_scale(scale: torch.Tensor, where: str) -> None:
    """Refuse row scales, as bytes [N, 4], by which a layer would give nonsense.

    Raises:
        InputError: one is not finite, or not positive.
    """
    if scale.numel() == 0:
        return
    values = scale.detach().cpu().contiguous().view(torch.float32)
    least, most = (float(value) for value in values.aminmax())
    if not 0 < least <= most < float("inf"):  # one NaN makes both NaN
        raise InputError(f"{where} holds a row scale that is not finite and positive; {DAMAGED}")


def check_exponents(exponents: torch.Tensor, where: str) -> None:
    """Compare an equalizer, int8 [K], with what one may be.

    Raises:
        InputError: an exponent is too large.
    """
    most = int(exponents.detach().cpu().to(torch.int32).abs().max()) if exponents.numel() else 0
    if most > LARGEST_EXPONENT:
        raise InputError(f"{where} holds the exponent {most}, and they go to {LARGEST_EXPONENT}; {DAMAGED}")


def check_codes(record: Record, file_of: Mapping[str, str]) -> None:
    """Look at what layers compute with: dialect ids, row scales, exponents. Codes and offsets cannot be out of range.

    Args:
        file_of: the file of every key.

    Raises:
        InputError: something is out of range; the message names file and key.
    """
    for file, keys in _by_file(file_of).items():
        with safe_open(file, framework="pt") as opened:
            for key in keys:
                name, _, end = key.rpartition(".")
                if name not in record.precisions or end not in ("weight_meta", "weight_scale", "weight_equalizer"):
                    continue
                tensor, where = opened.get_tensor(key), f"{file}: {key!r}"
                if end == "weight_meta":
                    check_meta(tensor, record.formatbook, where)
                elif end == "weight_scale":
                    check_scale(tensor, where)
                else:
                    check_exponents(tensor, where)


def check_covered(record: Record, keys: Iterable[str], where: str) -> None:
    """Compare the keys that a record has digests of with those that are there.

    Raises:
        InputError: they differ.
    """
    if odd := sorted(record.digests.keys() ^ (set(keys) - {RECORD})):
        has, lacks = ("tensor", "digest") if odd[0] not in record.digests else ("digest", "tensor")
        raise InputError(f"{where}: {odd[0]!r} has a {has} and no {lacks}; the files do not belong together: {DAMAGED}")


def damaged_keys(digests: Mapping[str, str], file_of: Mapping[str, str], end: Event | None = None) -> Iterator[str]:
    """The keys whose tensors differ from their digests. Setting `end` from another thread ends the search.

    Files are read piece by piece and not mapped, so that no weight stays in memory.
    """
    scratch = memoryview(bytearray(CHUNK))
    for file, keys in _by_file(file_of).items():
        with open(file, "rb") as content:
            length = int.from_bytes(content.read(8), "little")
            header = parse_object(content.read(length), file, DAMAGED)
            for key in keys:
                if end is not None and end.is_set():
                    return
                if key in digests and _digest(content, 8 + length, header[key], scratch) != digests[key]:
                    yield key


def _digest(content: BinaryIO, start: int, said: dict[str, Any], scratch: memoryview) -> str:
    """`tensor_digest` of a tensor in a safetensors file, by what its header says; its data begins at `start`."""
    begin, stop = said["data_offsets"]
    found = begun_digest(TORCH_NAMES.get(said["dtype"], said["dtype"]), said["shape"])
    content.seek(start + begin)
    left = stop - begin
    while left:
        count = content.readinto(scratch[: min(left, CHUNK)])  # type: ignore[attr-defined]  # of every binary file
        if not count:
            return ""
        found.update(scratch[:count])
        left -= count
    return found.hexdigest()


class DigestCheck:
    """All digests of a checkpoint, compared in the background; `finish` waits for the result."""

    def __init__(self, record: Record, file_of: Mapping[str, str]) -> None:
        self._file_of = file_of
        self._end = Event()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="sedialect-digests")
        keys = sorted(record.digests)
        parts = [{key: file_of[key] for key in keys[number::THREADS]} for number in range(THREADS)]
        self._found: list[Future[list[str]]] = [
            self._pool.submit(_first_damaged, record.digests, part, self._end) for part in parts
        ]
        self._pool.shutdown(wait=False)
        self._given_up = weakref.finalize(self, self._end.set)  # by a load that failed elsewhere

    def finish(self) -> None:
        """Wait.

        Raises:
            InputError: a tensor is not the one that was written.
        """
        check_undamaged([key for found in self._found for key in found.result()], self._file_of)


def check_undamaged(keys: Iterable[str], file_of: Mapping[str, str]) -> None:
    """Refuse a checkpoint that has damaged tensors.

    Raises:
        InputError: there is one.
    """
    for key in keys:
        raise InputError(f"{file_of[key]}: {key!r} differs from its digest, so the file was damaged or changed; {DAMAGED}")


def _first_damaged(digests: Mapping[str, str], file_of: Mapping[str, str], end: Event) -> list[str]:
    found = list(damaged_keys(digests, file_of, end))
    if found:
        end.set()
    return found


def _by_file(file_of: Mapping[str, str]) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for key, file in file_of.items():
        files.setdefault(file, []).append(key)
    return files
