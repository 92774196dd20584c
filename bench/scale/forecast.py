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
    """

    bandwidth: float
    latency: float


MACHINE = 8  # GPUs of a machine, within which Ulysses splits; Ring goes from machine to machine
WITHIN = Wire(330e9, 30e-6)  # NVLink 4
BETWEEN = Wire(45e9, 60e-6)  # 400 Gb/s for each GPU


def exchanged(case: Case, processes: int) -> tuple[float, float]:
    """Bytes that one GPU receives in a step, within its machine and from others.

    Ulysses exchanges what its own tokens need, four times in an attention; Ring brings the keys and values of all tokens, of
    the heads that Ulysses has left to this GPU.
    """
    ulysses = min(processes, MACHINE)
    ring = processes // ulysses
    own = case.tokens / processes * case.width * BYTES
    within = case.layers * EXCHANGES * own * (ulysses - 1) / ulysses
    between = case.layers * 2 * case.tokens * (ring - 1) / ring * case.width / ulysses * BYTES
    return within, between


def waiting(case: Case, processes: int) -> float:
    """Seconds of a step that go into collectives."""
    within, between = exchanged(case, processes)
    seconds = within / WITHIN.bandwidth + case.layers * EXCHANGES * WITHIN.latency
    choices = BETWEEN if between else WITHIN
    seconds += case.layers * CHOICES * choices.latency
    return seconds + (between / BETWEEN.bandwidth + case.layers * BETWEEN.latency if between else 0.0)


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
    lines = [["GPUs", "split", "GB within a machine", "GB between", "s on the wire", "s a step", "times one", "efficiency"]]
    lines.append(["---"] * len(lines[0]))
    for count in counts:
        step = forecast(case, count, one)
        split = f"Ulysses {min(count, MACHINE)}" + (f" x Ring {count // MACHINE}" if count > MACHINE else "")
        within, between = exchanged(case, count)
        cells = [str(count), split, f"{within / 1e9:.2f}", f"{between / 1e9:.2f}", f"{waiting(case, count):.3f}"]
        lines.append([*cells, f"{step:.3f}", f"{one / step:.1f}", f"{one / step / count:.0%}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
