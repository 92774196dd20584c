"""What a layer is told about its rows: salient tokens, groups, and whether the step is protected.

Guides run in every forward, compiled or not. They read tensors, the shape of their input and settings that never change;
compiled graphs therefore hold for all steps. Layers that read the same input have one guide.
"""

from dataclasses import dataclass

import torch

from ...kernels.guidance import RowGuidance
from ...kernels.tables import DialectTables
from ...kernels.transform import UNCHANGED, InputTransform, scale_columns
from ..formatbook import Formatbook
from .attended import AttendedTokens
from .placement import Placement
from .saliency import BY_ATTENTION, CHOSEN_BY_PROFILE, Encoding, chance, encoding_error, row_norm, salient_count, top_tokens
from .state import Flags


@dataclass
class TextGuide:
    """All rows are text: each gets its second term."""

    flags: Flags
    salient: bool
    protects: bool

    def __call__(self, x: torch.Tensor, transform: InputTransform = UNCHANGED) -> RowGuidance:
        """Guidance for x [..., K]."""
        rows = x.numel() // x.shape[-1]
        salient = torch.arange(rows, dtype=torch.int32, device=x.device) if self.salient else None
        return RowGuidance(salient, protected=self.flags.protected if self.protects else None)


@dataclass
class TokenGuide:
    """Rows of video tokens, alone or with text.

    placement  where the video tokens stand; None: it is not known, and there are no groups
    among      where the tokens stand that are chosen from; None: they are not told apart, and all rows are chosen from alike
    ratio, by  settings `salient_ratio` and `salient_by`
    protects   whether there are protected steps
    attention  what the attention of the layer's block shows, where anything is made of it
    """

    flags: Flags
    formatbook: Formatbook
    encoding: Encoding
    placement: Placement | None
    among: Placement | None
    ratio: float = 0.0
    by: str = "norm"
    protects: bool = False
    attention: AttendedTokens | None = None

    def __call__(self, x: torch.Tensor, transform: InputTransform = UNCHANGED) -> RowGuidance:
        """Guidance for x [..., N, K]; leading axes are samples.

        Raises:
            ModelError: the sequence does not fit the grid.
        """
        x = x.reshape(-1, *x.shape[-2:]) if x.ndim > 1 else x.view(1, 1, -1)
        length = x.shape[1]
        salient = self._salient(x, self._candidates(length), transform) if self.ratio else None
        group, choice = None, None
        if self.attention is not None and self.attention.groups is not None:
            span = self._span(self.placement, length)
            group, choice = self.attention.shared(x, self._tables(x), self.encoding.block_size, transform, *span)
        return RowGuidance(salient, group, choice, self.flags.protected if self.protects else None)

    def _span(self, placement: Placement | None, length: int) -> tuple[int, int]:
        return (0, length) if placement is None else placement.span(length, self.flags.video_tokens)

    def _candidates(self, length: int) -> Placement | None:
        """Where the tokens stand that are chosen from.

        All rows, where nothing but the input decides and it does not fit the grid: of a sequence that is split over devices,
        or where a forward does not tell its grid.
        """
        told = self.by in BY_ATTENTION or (self.among is not None and self.among.fits(length, self.flags.video_tokens))
        return self.among if told else None

    def _salient(self, x: torch.Tensor, among: Placement | None, transform: InputTransform) -> torch.Tensor:
        """Rows of the flattened input, int32 [E]: the chosen video tokens of each sample, and all its text."""
        samples, length, _ = x.shape
        start, stop = self._span(among, length)
        tokens = [self._chosen(x[:, start:stop], transform) + start] if stop > start else []
        if among is not None and among.others:
            rest = torch.cat([torch.arange(0, start, device=x.device), torch.arange(stop, length, device=x.device)])
            tokens.append(rest.expand(samples, -1))
        first = torch.arange(samples, device=x.device).unsqueeze(1) * length
        return (torch.cat(tokens, dim=1) + first).flatten().int()

    def _chosen(self, video: torch.Tensor, transform: InputTransform) -> torch.Tensor:
        """Places among the video tokens, int64 [samples, k]."""
        if self.by in CHOSEN_BY_PROFILE and self.attention is not None:
            return self.attention.chosen(video.device)
        return top_tokens(self._score(video, transform), salient_count(self.ratio, video.shape[1]))

    def _score(self, video: torch.Tensor, transform: InputTransform) -> torch.Tensor:
        if self.by in ("error", "attention-error"):
            error = encoding_error(video, self._tables(video), self.encoding, transform)
            if self.by == "error" or self.attention is None:
                return error
            return error * self.attention.received(video.device)
        # Outlier channels say little about what encoding loses of a token, once they are equalized.
        return row_norm(scale_columns(video, transform.equalizer, -1)) if self.by == "norm" else chance(video)

    def _tables(self, x: torch.Tensor) -> DialectTables:
        return self.formatbook.tables(x.device)
