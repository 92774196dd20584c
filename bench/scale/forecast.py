"""The plan on paper: what a step should take on so many GPUs, from what it takes on one and from what goes over the wire."""

from dataclasses import dataclass

from .cases import Case

BYTES = 2  # of a number in an all-to-all: bfloat16
DECODED = 1.5  # bytes that move for a stored weight when it is decoded: half a byte is read, one is written
MEMORY = 3.5e12  # bytes a second
EXCHANGES = 4  # all-to-alls in a self-attention: of queries, keys, values, and results
CHOICES = 2  # gathers of scores in a block: the two layers of the feed-forward


@dataclass(frozen=True)
class Wire:
    """What GPUs are connected by.

    bandwidth  bytes a second that a GPU sends while it receives as many
    latency    seconds of one collective, beside its bytes
    within     how many GPUs are connected so; more go over the next wire
    """

    name: str
    bandwidth: float
    latency: float
    within: int


NVLINK = Wire("NVLink 4, one machine", 330e9, 30e-6, 8)
INFINIBAND = Wire("400 Gb/s a GPU, between machines", 45e9, 60e-6, 1 << 20)


def wire_of(processes: int) -> Wire:
    """The slowest wire that so many GPUs use."""
    return NVLINK if processes <= NVLINK.within else INFINIBAND


def exchanged(case: Case, processes: int) -> float:
    """Bytes that one GPU sends in a step of Ulysses over `processes`."""
    own = case.tokens / processes * case.width * BYTES
    return case.layers * EXCHANGES * own * (processes - 1) / processes


def waiting(case: Case, processes: int) -> float:
    """Seconds of a step that go into collectives."""
    wire = wire_of(processes)
    return exchanged(case, processes) / wire.bandwidth + case.layers * (EXCHANGES + CHOICES) * wire.latency


def decoding(case: Case) -> float:
    """Seconds of a step that every GPU decodes weights, however many there are."""
    weights = case.layers * (8 * case.width**2 + 2 * case.width * case.hidden)
    return weights * DECODED / MEMORY


def forecast(case: Case, processes: int, one: float) -> float:
    """Seconds of a step on `processes` GPUs, where it takes `one` on one."""
    whole = min(decoding(case), one)
    return whole + (one - whole) / processes + waiting(case, processes)


def render_forecast(case: Case, one: float, counts: tuple[int, ...] = (2, 4, 8, 16, 32, 64)) -> str:
    """The table of the plan, for a step of `one` seconds on one GPU."""
    head = [
        "GPUs",
        "wire",
        "GB sent a GPU and step",
        "s on the wire",
        "s a step",
        "as fast as one",
        "efficiency",
    ]
    lines = [head, ["---"] * len(head)]
    for count in counts:
        step = forecast(case, count, one)
        cells = [str(count), wire_of(count).name, f"{exchanged(case, count) / 1e9:.2f}", f"{waiting(case, count):.3f}"]
        lines.append([*cells, f"{step:.3f}", f"{one / step:.1f}", f"{one / step / count:.0%}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
