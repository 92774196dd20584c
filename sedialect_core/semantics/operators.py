"""The two places where what a model sees becomes state, as torch operators: opaque to compilers, which keep their order.

Both look at flags on the CPU, which the step hook sets before the model runs: nothing is computed in steps that do not
profile, and no layer waits for the GPU.
"""

import torch

from ...kernels.ops import NAMESPACE
from ...kernels.sharing import ELEMENT_BYTES, choose_books, choose_dialects
from ...kernels.tables import DialectTables
from ...kernels.transform import InputTransform, transform_rows
from .attention import received_attention, window_attention
from .grouping import COSINE_BYTES, Windows, claim_tokens, members_alike
from .saliency import top_tokens
from .shard import from_arguments
from .split_attention import received_in_part, window_attention_in_part

SHARD = "str process_group, int rank, int ranks, bool uneven"  # as of `shard.as_arguments`

OBSERVE_SCHEMA = (
    "(Tensor query, Tensor key, Tensor? mask, float? scale, int tile, int sample, int start, Tensor profile, Tensor call, "
    "Tensor anchors, Tensor members, float quantile, bool peak, float megabytes, Tensor(a!) received, Tensor(b!) salient, "
    f"Tensor(c!) claims, {SHARD}) -> ()"
)


@torch.library.custom_op(
    f"{NAMESPACE}::observe_attention", mutates_args=("received", "salient", "claims"), schema=OBSERVE_SCHEMA
)
def observe_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    tile: int,
    sample: int,
    start: int,
    profile: torch.Tensor,
    call: torch.Tensor,
    anchors: torch.Tensor,
    members: torch.Tensor,
    quantile: float,
    peak: bool,
    megabytes: float,
    received: torch.Tensor,
    salient: torch.Tensor,
    claims: torch.Tensor,
    process_group: str,
    rank: int,
    ranks: int,
    uneven: bool,
) -> None:
    """Note what an attention shows of the video tokens, if this step profiles.

    Args:
        query, key: [B, H, N, D] of the samples from number `sample` on; the video tokens begin at `start` of the keys, and
            of the queries, unless those are the video tokens alone.
        mask, scale, tile, megabytes: as of `received_attention`.
        profile: bool [1] and call: int64 [1], both on the CPU: whether to note anything, and for which call of the step.
        anchors, members: of `Windows`; empty where no groups are wanted.
        received: float32 [calls, samples, V]; salient: int64 [calls, samples, k], the k most attended; claims: int32
            [calls, samples, V], as of `claim_tokens`.
        process_group, rank, ranks, uneven: the part of the video tokens that is here, as of `shard.as_arguments`. The state
            is that of all of them.
    """
    if not bool(profile):
        return
    slot, samples, tokens = int(call), slice(sample, sample + query.shape[0]), received.shape[2]
    shard = from_arguments(process_group, rank, ranks, uneven)
    own = tokens if shard is None else shard.own(tokens)
    video = slice(start, start + own)
    if shard is None:
        score = received_attention(query, key, mask, scale, tile, peak=peak, megabytes=megabytes)[:, video]
    else:
        score = shard.gather(received_in_part(query, key, start, tokens, shard, scale, peak, megabytes), tokens)
    received[slot, samples] = score.to(received.device)
    salient[slot, samples] = top_tokens(score, salient.shape[2]).to(salient.device)
    if anchors.numel():
        windows = Windows(anchors, members).to(query.device)
        asking = query if query.shape[2] == own else query[:, :, video]
        seen = (asking, key[:, :, video], windows.anchors, windows.members)
        if shard is None:
            attention = window_attention(*seen, scale, megabytes)
        else:
            attention = window_attention_in_part(*seen, tokens, shard, scale, megabytes)
        claims[slot, samples] = claim_tokens(attention, windows, quantile, tokens).to(claims.device)


@observe_attention.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
    tile: int,
    sample: int,
    start: int,
    profile: torch.Tensor,
    call: torch.Tensor,
    anchors: torch.Tensor,
    members: torch.Tensor,
    quantile: float,
    peak: bool,
    megabytes: float,
    received: torch.Tensor,
    salient: torch.Tensor,
    claims: torch.Tensor,
    process_group: str,
    rank: int,
    ranks: int,
    uneven: bool,
) -> None:
    return None


ASSIGN_SCHEMA = (
    "(Tensor x, Tensor[] tables, int block_size, Tensor? equalizer, int rotation, Tensor books, int start, "
    "float similarity, float megabytes, Tensor assign, Tensor call, Tensor anchors, Tensor claims, Tensor(a!) group, "
    f"Tensor(b!) choice, {SHARD}) -> ()"
)


@torch.library.custom_op(f"{NAMESPACE}::assign_groups", mutates_args=("group", "choice"), schema=ASSIGN_SCHEMA)
def assign_groups(
    x: torch.Tensor,
    tables: list[torch.Tensor],
    block_size: int,
    equalizer: torch.Tensor | None,
    rotation: int,
    books: torch.Tensor,
    start: int,
    similarity: float,
    megabytes: float,
    assign: torch.Tensor,
    call: torch.Tensor,
    anchors: torch.Tensor,
    claims: torch.Tensor,
    group: torch.Tensor,
    choice: torch.Tensor,
    process_group: str,
    rank: int,
    ranks: int,
    uneven: bool,
) -> None:
    """Form a layer's groups from what the last profiled step claimed, and choose what they share, if it is time to.

    Args:
        x: [B, N, K], whose video tokens begin at `start`.
        books: uint8 [P], shapes of each sub-formatbook as bits, on the CPU; empty where groups share a dialect.
        megabytes: that temporaries may take.
        assign: bool [1] and call: int64 [1], both on the CPU.
        claims: int32 [calls, B, V]; group: int32 [calls, B, n], numbers b * A + a, -1 for none; choice: uint8
            [calls, B * A, K/B], as of `ops.encode`.
        process_group, rank, ranks, uneven: as of `observe_attention`; x and `group` are of the tokens that are here.
    """
    if not bool(assign):
        return
    slot, width = int(call), x.shape[2]
    shard = from_arguments(process_group, rank, ranks, uneven)
    video = x[:, start : start + group.shape[2]]
    elements = max(width, int(megabytes * 1e6) // ELEMENT_BYTES)
    at_once = max(1, int(megabytes * 1e6) // (COSINE_BYTES * width))
    groups = members_alike(video, claims[slot].to(x.device), anchors.to(x.device), similarity, at_once, shard)
    rows = transform_rows(video.reshape(-1, width), InputTransform(equalizer, rotation))
    arguments = (rows, groups.flatten(), choice.shape[1], DialectTables(*tables), block_size)
    everywhere = None if shard is None else shard.add_up
    if books.numel():
        chosen = choose_books(*arguments, books.to(x.device), elements, everywhere)
    else:
        chosen = choose_dialects(*arguments, elements, everywhere)
    group[slot] = groups.to(group.device)
    choice[slot] = chosen.to(choice.device)


@assign_groups.register_fake
def _(
    x: torch.Tensor,
    tables: list[torch.Tensor],
    block_size: int,
    equalizer: torch.Tensor | None,
    rotation: int,
    books: torch.Tensor,
    start: int,
    similarity: float,
    megabytes: float,
    assign: torch.Tensor,
    call: torch.Tensor,
    anchors: torch.Tensor,
    claims: torch.Tensor,
    group: torch.Tensor,
    choice: torch.Tensor,
    process_group: str,
    rank: int,
    ranks: int,
    uneven: bool,
) -> None:
    return None
