"""Digests by which damage of a tensor in a file is found."""

import torch
import xxhash


def tensor_digest(tensor: torch.Tensor) -> str:
    """XXH3 (128 bit, in hexadecimal) of a tensor's dtype, shape and bytes. It finds damage; forgers are the Hub's affair,
    whose SHA-256 of whole files is checked where they are downloaded."""
    found = begun_digest(str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
    if tensor.numel():
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def begun_digest(dtype: str, shape: list[int]) -> "xxhash.xxh3_128":
    """The digest of a tensor before its bytes; dtypes by torch's names."""
    return xxhash.xxh3_128(f"{dtype} {shape} ".encode())
