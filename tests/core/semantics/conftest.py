"""Watching the attention of models: none may pass by unseen, and every explicit softmax is noted."""

import warnings

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch.nn import functional

from sedialect.sedialect_core.semantics import probe

BACKENDS = _AttentionBackendRegistry._backends


@pytest.fixture
def strict():
    """An attention that passes by unseen is a failure here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the attention of")
        yield


@pytest.fixture
def softmaxes(monkeypatch):
    """Mean over heads and queries of every explicit softmax(q k^T), in the order of the calls; watched functions call it."""
    seen = []
    probe.unwatch_functions()
    monkeypatch.setattr("sedialect.sedialect_core.semantics.attention.QUERIES", 1 << 20)  # all of them
    attend, flex = functional.scaled_dot_product_attention, BACKENDS["flex"]

    def spy(query, key, value, attn_mask=None, *args, **kwargs):
        eye = torch.eye(key.shape[2]).expand(*key.shape[:3], -1)
        mask = attn_mask if attn_mask is None or attn_mask.dtype == torch.bool else attn_mask.float()
        seen.append(attend(query.float(), key.float(), eye, mask, *args, **kwargs).mean((1, 2)))
        return attend(query, key, value, attn_mask, *args, **kwargs)

    def spy_on_flex(query, key, value, *args, **kwargs):
        """The same for sparse attention, whose sequences come before the heads."""
        eye = torch.eye(key.shape[1], dtype=query.dtype)[:, None].expand(len(key), -1, key.shape[2], -1)
        seen.append(flex(query, key, eye, *args, **kwargs).float().mean((1, 2)))
        return flex(query, key, value, *args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    monkeypatch.setitem(BACKENDS, "flex", spy_on_flex)
    yield seen
    probe.unwatch_functions()
