"""What of a model that is known by its configuration alone fits a card: for the command line and the app."""

from ..config import SeDialectConfig
from ..plan.fit import Choice, Fitter
from .memory import Estimator


def fitted(estimator: Estimator, card: float, config: SeDialectConfig, *, block_sizes: bool = True) -> Choice:
    """The first way to run the outline's pipeline that fits a card of so many GB.

    Args:
        config: of the transformers.
        block_sizes: whether blocks of 32 may be taken in place of 16.

    Raises:
        ModelError: nothing fits; the message says what would.
    """
    parts = estimator.outline.parts
    models, roles = {part.name: part.model for part in parts}, {part.name: part.role for part in parts}
    size = estimator.size
    return Fitter(models, roles, size.latent, size.video).choose(card, config, block_sizes=block_sizes)
