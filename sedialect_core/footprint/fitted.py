"""What of a model that is known by its configuration alone fits a card: for the command line and the app."""

from dataclasses import replace

from ..config import SeDialectConfig
from ..plan.advice import INSTALL_TRITON
from ..plan.fit import Choice, Fitter
from .memory import Estimator

ASSUMED = f"that it can be compiled is assumed: it takes Triton; {INSTALL_TRITON}"


def fitted(
    estimator: Estimator, card: float, config: SeDialectConfig, *, block_sizes: bool = True, compiling: bool = True
) -> Choice:
    """The first way to run the outline's pipeline that fits a card of so many GB.

    Args:
        config: of the transformers.
        block_sizes: whether blocks of 32 may be taken in place of 16.
        compiling: whether transformers' blocks may be compiled.

    Raises:
        ModelError: nothing fits; the message says what would.
    """
    choice = fitter_of(estimator).choose(card, config, block_sizes=block_sizes, compiling=compiling)
    return replace(choice, notes=(*choice.notes, ASSUMED)) if choice.option.compiled else choice


def fitter_of(estimator: Estimator) -> Fitter:
    """The ways to run the outline's pipeline at the estimator's size."""
    parts, size = estimator.outline.parts, estimator.size
    models, roles = {part.name: part.model for part in parts}, {part.name: part.role for part in parts}
    return Fitter(models, roles, size.latent, size.video)
