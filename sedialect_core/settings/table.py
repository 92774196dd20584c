"""The table of settings: one entry each, read by the configuration, command line, nodes, app and docs/settings.md."""

from dataclasses import dataclass

from .entry import BASIC, FRONT, Option, entries, setting
from .values import Book, Choice, LayerPrecisions, Number, Numbers, Patterns, Switch, Text

PRECISIONS = ("w4a4", "w4a8", "w4a16")  # of quantized layers
UNQUANTIZED = "16bit"
ATTENTIONS = (UNQUANTIZED, "8bit", "fp8")
MODULATIONS = ("w4a16", "keep")
BLOCK_SIZES = (16, 32)
PRODUCTS = ("auto", "fp8", "int8", "16bit")
CANDIDATES = ("max", "all")
ROTATIONS = (0, 16, 32, 64, 128)
SALIENCES = ("norm", "error", "attention", "peak-attention", "attention-error", "random")
CHOSEN_BY_PROFILE = ("attention", "peak-attention")  # settings `salient_by` by which a profile alone says which tokens
BY_ATTENTION = (*CHOSEN_BY_PROFILE, "attention-error")  # those that need one
SALIENT_LAYERS = ("feed_forward", "all")
SHARINGS = ("sub-formatbook", "dialect")
EXTENTS = ("frames", "rows", "columns")

# Headings that the app groups settings by.
FORMATS = "Numbers"
SALIENT = "Salient tokens, which get a second 4-bit term"
GROUPS = "Tokens that belong together"
OTHERWISE = "Steps and layers that are treated otherwise"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a configuration.

    A new one is one field here; at the end, because a saved ComfyUI workflow holds the values of inputs in their order. Its
    other words are the translations of the node's input in locales/.
    """

    precision: str = setting(
        "w4a4",
        Choice((*PRECISIONS, UNQUANTIZED)),
        "Precision",
        "Bits of weights and activations in the transformer blocks. w4a4 is the method; w4a8 is closer to 16 bit, and as "
        "fast on GPUs with FP8; w4a16 encodes the weights only; 16bit leaves the layers as they are, for attention alone.",
        node=FRONT,
        web=FORMATS,
    )
    block_size: int = setting(
        16,
        Choice(BLOCK_SIZES),
        "Block size",
        "Numbers that share one dialect: 16 takes 4.5 bits a weight, 32 takes 4.25.",
        node=FRONT,
        web=FORMATS,
    )
    formatbook: str = setting(
        "universal-32",
        Book(),
        "Formatbook",
        "The set of 4-bit number formats that blocks choose from: a built-in book's name, a file, a folder or a Hub "
        "repository.",
        node="",  # a socket there
        web=FORMATS,
    )
    formatbook_digest: str = setting(
        "",
        Text(),
        "Digest of the formatbook",
        "What the book's numbers must hash to, as checkpoints record it; empty where any will do.",
        option=None,
        node="",
        web="",
    )
    salient_ratio: float = setting(
        0.25,
        Number(0, 1, whole=False),
        "Part of all video tokens",
        "Part of the video tokens that get a second 4-bit term, 0 to 1: nearer to 16 bit, but slower.",
        live=True,
        node=BASIC,
        web=SALIENT,
    )
    salient_by: str = setting(
        "norm",
        Choice(SALIENCES),
        "Chosen by",
        "How the tokens with a second term are chosen: by norm or encoding error of the layer's input, by the attention "
        "that they receive, on average or at its peak, by error times attention, or at random, for comparison.",
        live=True,
        web=SALIENT,
    )
    salient_layers: str = setting(
        "feed_forward",
        Choice(SALIENT_LAYERS),
        "In which layers",
        "Which layers give tokens a second term; in feed_forward it brings most for what it costs.",
        live=True,
        option=None,
        web=SALIENT,
    )
    semantic: bool = setting(
        False,
        Switch(),
        "Group tokens",
        "Tokens that attend to each other and are nearly equal share their number formats.",
        live=True,
        node=BASIC,
        web=GROUPS,
    )
    semantic_sharing: str = setting(
        "sub-formatbook",
        Choice(SHARINGS),
        "Members share",
        "What the tokens of a group share in each block of channels: a sub-formatbook, from which each takes its own "
        "dialect, or the dialect itself.",
        live=True,
        node="",
        web=GROUPS,
    )
    semantic_window: tuple[int, int, int] = setting(
        (2, 2, 2),
        Numbers(1, parts=EXTENTS),
        "Window",
        "Frames, rows and columns around an anchor whose tokens may join it.",
        live=True,
        option=None,
        node="",
        web=GROUPS,
        most=8,
    )
    semantic_spacing: tuple[int, int, int] = setting(
        (0, 0, 0),
        Numbers(0, parts=EXTENTS),
        "From anchor to anchor",
        "Frames, rows and columns from one anchor to the next; zeros: as the window, so that none overlap.",
        live=True,
        option=None,
        node="",
        web=GROUPS,
        most=16,
    )
    semantic_quantile: float = setting(
        0.5,
        Number(0, 1, whole=False),
        "Attention that members need",
        "A member's attention from the anchor lies at or above this quantile of the window's.",
        live=True,
        option=None,
        node="",
        web=GROUPS,
    )
    semantic_similarity: float = setting(
        0.995,
        Number(-1, 1, whole=False),
        "Likeness that members need",
        "The cosine between a member's input and the anchor's is at least this.",
        live=True,
        option=None,
        node="",
        web=GROUPS,
    )
    refresh_every: int = setting(
        5,
        Number(0),
        "Look at attention every",
        "Attention is profiled in the first step of a sampler and then every so many steps; 0: in the first only.",
        live=True,
        option=None,
        web=GROUPS,
    )
    refresh_at: tuple[float, ...] = setting(
        (),
        Numbers(0, 1, whole=False),
        "Or at these parts of the run",
        "Parts of the schedule at which attention is profiled, whatever refresh_every says; each model of a pipeline also "
        "profiles at its own first step if one of them lies before it.",
        live=True,
        option=None,
        node="",
        web=GROUPS,
    )
    profile_megabytes: int = setting(
        128,
        Number(1),
        "Memory for profiling",
        "What profiling and grouping may take in temporaries, in units of 10^6 bytes; one head of one sample, at least, is "
        "looked at at a time.",
        live=True,
        option=None,
        node="",
        web="",  # what a run may take of the server's memory is the operator's to say
    )
    protected_steps: tuple[int, int] = setting(
        (0, 0),
        Numbers(0, parts=("first", "last")),
        "Steps with 8-bit activations",
        "Number of steps at the start and at the end of sampling that run with 8-bit activations, and attention in 16 bit.",
        live=True,
        node=BASIC,
        web=OTHERWISE,
        most=50,
    )
    rotation: int = setting(
        0,
        Choice(ROTATIONS),
        "Rotation",
        "Rotates weights and activations by Hadamard blocks of this many channels, which spreads outliers; 0: off. With "
        "calibration, only the layers that it brings nearer to 16 bit.",
        option=Option("--rotate", bare=64, command="quantize", metavar="SIZE"),
        web=FORMATS,
    )
    equalize: bool = setting(
        True,
        Switch(),
        "Equalize channels",
        "Scales input channels by powers of two, so that outlier channels do not set the scale of their rows. Their sizes "
        "are told from the weights or, with calibration, from the inputs.",
        web=FORMATS,
    )
    candidates: str = setting(
        "max",
        Choice(CANDIDATES),
        "Candidates of a block",
        "Which dialects a block of activations chooses from: those of its maximum, or all, which is slower.",
        option=None,
        web=FORMATS,
    )
    modulation: str = setting(
        "w4a16",
        Choice(MODULATIONS),
        "Modulation layers",
        "Modulation layers (adaLN), which have one row per sample: w4a16 quantizes their weights, keep leaves them in 16 "
        "bit.",
        option=None,
        web=FORMATS,
    )
    skip: tuple[str, ...] = setting(
        (),
        Patterns(),
        "Layers left in 16 bit",
        "Regular expressions; a layer whose name matches one of them stays in 16 bit.",
        option=None,
        node="",  # a field of its own there, and in the app, where it holds parts of names
        web="",
    )
    layer_precisions: tuple[tuple[str, str], ...] = setting(
        (),
        LayerPrecisions((*PRECISIONS, UNQUANTIZED)),
        "Precision of some layers",
        "Regular expressions with a precision each; the first that matches a layer's name decides.",
        option=None,
        node="",
        web=OTHERWISE,
    )
    attention: str = setting(
        UNQUANTIZED,
        Choice(ATTENTIONS),
        "Attention",
        "How the long self-attention of the video tokens runs: 16bit; 8bit, with INT8 scores and 8-bit values, which is "
        "faster; or fp8, by FlashAttention-3, faster still and further from 16 bit.",
        live=True,
        web=FORMATS,
    )
    products: str = setting(
        "auto",
        Choice(PRODUCTS),
        "Matrix products",
        "Which matrix units of the GPU multiply: auto takes the fastest that it has, and the report says which and why. "
        "Files do not depend on it.",
        live=True,
        web=OTHERWISE,
    )


SETTINGS = entries(Settings)
LIVE = tuple(entry.name for entry in SETTINGS if entry.live)
"""Settings that only matter while the model runs: they can change without encoding weights anew."""
