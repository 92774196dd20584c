"""What the attention of a block shows of its tokens: the published mechanisms, as one optional part of a guide.

Tokens chosen by attention, and groups that share formats. A guide without this part knows neither.
"""

from dataclasses import dataclass, field

import torch

from ...kernels.tables import DialectTables
from ...kernels.transform import InputTransform
from . import operators
from .shard import as_arguments
from .state import BlockState, Flags, GroupState


@dataclass
class AttendedTokens:
    """The video tokens of one input, as the attention of the layer's block showed them.

    block       what it showed when it was last profiled
    groups      groups of this input, or None
    similarity  that members need, as of `operators.assign_groups`
    megabytes   that forming groups may take in temporaries
    books       the sub-formatbooks that they share, as of `operators.assign_groups`
    """

    flags: Flags
    block: BlockState
    groups: GroupState | None = None
    similarity: float = 1.0
    megabytes: float = 0.0
    books: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def chosen(self, device: torch.device) -> torch.Tensor:
        """Places among the video tokens, int64 [samples, k], that attention alone chose."""
        return self._now(self.block.salient, device)

    def received(self, device: torch.device) -> torch.Tensor:
        """Attention that each video token received when it was last looked at, [samples, V]; ones before that."""
        received = self._now(self.block.received, device)
        return torch.where(received.sum() == 0, 1.0, received)

    def shared(
        self, x: torch.Tensor, tables: DialectTables, block_size: int, transform: InputTransform, start: int, stop: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Group of each row, int32 [M], and what each group took, uint8 [G, K/B], of x [B, N, K], whose video tokens stand
        from `start` to `stop` - 1; None where there are no groups."""
        state = self.groups
        if state is None or stop <= start:
            return None, None
        operators.assign_groups(
            x,
            tables.operands,
            block_size,
            transform.equalizer,
            transform.rotation,
            self.books,
            start,
            self.similarity,
            self.megabytes,
            self.flags.assign,
            self.flags.call,
            self.flags.windows.anchors,
            self.block.claims,
            state.group,
            state.choice,
            *as_arguments(self.flags.shard),
        )
        group = torch.full(x.shape[:2], -1, dtype=torch.int32, device=x.device)
        group[:, start:stop] = self._now(state.group, x.device)
        return group.flatten(), self._now(state.choice, x.device)

    def _now(self, state: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The part of a state that belongs to this call of the step."""
        return state.index_select(0, self.flags.call_there).squeeze(0).to(device)
