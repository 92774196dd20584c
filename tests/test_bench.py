"""The small measurements of the documents."""

from sedialect.sedialect_core.bench.fusing import measure_fusing


def test_weak_loras_lose_more_when_fused():
    lines = measure_fusing().splitlines()
    errors, effects = ([int(c.strip().rstrip("%")) for c in line.split("|")[2:-1]] for line in lines[2:])
    assert errors == sorted(errors, reverse=True) and effects[0] < 20 < 95 < effects[-1]
