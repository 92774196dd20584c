"""What the tensors of a piece of code take."""

import weakref
from collections import Counter

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Memory(TorchDispatchMode):
    """The most bytes that tensors made while it is on take at a time; views of `known` ones do not count."""

    def __init__(self, *known):
        super().__init__()
        self.now, self.peak, self.users = 0, 0, Counter()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor)
        return result

    def note(self, tensor):
        place, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        if place in self.known:
            return
        if not self.users[place]:
            self.now += size
            self.peak = max(self.peak, self.now)
        self.users[place] += 1
        weakref.finalize(tensor, self.free, place, size)

    def free(self, place, size):
        self.users[place] -= 1
        if not self.users[place]:
            self.now -= size
