"""Settings that have salient tokens chosen, groups formed and steps protected in models as small as the tests'."""

ATTENTION = {"salient_ratio": 0.25, "salient_by": "attention", "salient_layers": "all", "refresh_every": 2}
GROUPS = {"semantic": True, "semantic_window": (1, 2, 2), "semantic_similarity": 0.3, "refresh_every": 2}
NORM = {"salient_ratio": 0.25, "salient_layers": "all"}
PROTECTED = {"protected_steps": (1, 2)}
EVERYTHING = {**GROUPS, **ATTENTION, **PROTECTED}
