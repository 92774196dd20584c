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


def exchanged(case: Case, processes: int, ulysses: int = 0) -> tuple[float, float]:
    """Bytes that one GPU receives in a step, by Ulysses among `ulysses` processes (0: those of a machine) and by Ring.

    Ulysses exchanges what its own tokens need, four times in an attention; Ring brings the keys and values of all tokens, of
    the heads that Ulysses has left to this GPU.
    """
    ulysses = ulysses or min(processes, MACHINE)
    ring = processes // ulysses
    own = case.tokens / processes * case.width * BYTES
    by_ulysses = case.layers * EXCHANGES * own * (ulysses - 1) / ulysses
    by_ring = case.layers * 2 * case.tokens * (ring - 1) / ring * case.width / ulysses * BYTES
    return by_ulysses, by_ring


def on_the_wire(case: Case, processes: int, ulysses: int = 0) -> float:
    """Seconds of a step that the bytes take; Ring's go from machine to machine where there are several."""
    by_ulysses, by_ring = exchanged(case, processes, ulysses)
    return by_ulysses / WITHIN.bandwidth + by_ring / _farthest(processes).bandwidth


def waiting(case: Case, processes: int, ulysses: int = 0) -> float:
    """Seconds of a step that go into collectives."""
    ulysses = ulysses or min(processes, MACHINE)
    seconds = on_the_wire(case, processes, ulysses) + case.layers * CHOICES * _farthest(processes).latency
    if ulysses > 1:
        seconds += case.layers * EXCHANGES * WITHIN.latency
    return seconds + (case.layers * _farthest(processes).latency if ulysses < processes else 0.0)


def _farthest(processes: int) -> Wire:
    return BETWEEN if processes > MACHINE else WITHIN


def decoding(case: Case) -> float:
    """Seconds of a step that every GPU decodes weights, however many there are."""
    return case.weights * DECODED / MEMORY


def forecast(case: Case, processes: int, one: float, ulysses: int = 0) -> float:
    """Seconds of a step on `processes` GPUs, where it takes `one` on one; `ulysses` as of `exchanged`."""
    whole = min(decoding(case), one)
    return whole + (one - whole) / processes + waiting(case, processes, ulysses)


def saved_in_8_bit(case: Case, processes: int, one: float) -> float:
    """Which part of a step half as many bytes on the wire would save, if encoding them cost nothing."""
    return on_the_wire(case, processes) / 2 / forecast(case, processes, one)


def render_forecast(case: Case, one: float, counts: tuple[int, ...] = (2, 4, 8, 16, 32, 64)) -> str:
    """The table of the plan, for a step of `one` seconds on one GPU."""
    lines = [["GPUs", "split", "GB within a machine", "GB between", "s on the wire", "s a step", "times one", "efficiency"]]
    lines[0].append("8 bits on the wire save at most")
    lines.append(["---"] * len(lines[0]))
    for count in counts:
        step = forecast(case, count, one)
        split = f"Ulysses {min(count, MACHINE)}" + (f" x Ring {count // MACHINE}" if count > MACHINE else "")
        within, between = exchanged(case, count)
        cells = [str(count), split, f"{within / 1e9:.2f}", f"{between / 1e9:.2f}", f"{waiting(case, count):.3f}"]
        cells += [f"{step:.3f}", f"{one / step:.1f}", f"{one / step / count:.0%}"]
        lines.append([*cells, f"{saved_in_8_bit(case, count, one):.1%}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
