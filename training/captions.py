"""The grammar of the toy world: what a clip may show and how a caption says it.

A clip is described by a `ClipSpec`; the renderer reads the same object the caption is written from, so words and
pixels can never disagree. Part of the attribute combinations is kept out of training by `is_held_out`, an
arithmetic rule without any state, so that the evaluation prompts are new to the model and a test can prove it.
"""

import random
from dataclasses import dataclass
from typing import Any

SHAPES = ("ball", "square", "triangle", "star", "ring", "diamond", "hexagon", "heart", "cross")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white")
TEXTURES = ("plain", "striped", "spotted", "checkered")
SIZES = ("small", "medium", "large")
MOTIONS = (
    "still",
    "left",
    "right",
    "up",
    "down",
    "up left",
    "up right",
    "down left",
    "down right",
    "clockwise",
    "counterclockwise",
    "bounce",
    "swing",
)
CHANGES = ("none", "turning", "growing", "shrinking")
PATTERNS = ("smooth", "striped", "dotted", "grid", "cloudy")
BACKDROPS = ("gray", "blue", "green", "purple", "red", "teal", "orange", "pink")
CAMERAS = ("still", "left", "right", "up", "down", "in", "out")

_SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "ball", "circle", "disc"),
    "square": ("square", "square", "box", "cube"),
}
_SHAPE_WORDS |= {"ring": ("ring", "ring", "donut"), "cross": ("cross", "cross", "plus")}
_COLOUR_WORDS = {"purple": ("purple", "purple", "violet"), "cyan": ("cyan", "cyan", "turquoise")}
_SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "small", "little", "tiny"),
    "large": ("large", "large", "big", "huge"),
}
_SIZE_WORDS |= {"medium": ("medium",)}
_TEXTURE_AFTER = {"striped": ("stripes",), "spotted": ("spots", "dots"), "checkered": ("checks",)}
_GO = (("moves", "moving"), ("moves", "moving"), ("slides", "sliding"), ("glides", "gliding"), ("drifts", "drifting"))
_STILL = (("stays still", "staying still"), ("stands still", "standing still"), ("rests", "resting"))
_RISE = (("rises", "rising"), ("floats up", "floating up"))
_FALL = (("falls", "falling"), ("sinks", "sinking"))
_BOUNCE = (("bounces", "bouncing"), ("bounces up and down", "bouncing up and down"), ("jumps", "jumping"))
_SWING = (("swings", "swinging"), ("swings from side to side", "swinging from side to side"))
_ORBIT = (("circles {}", "circling {}"), ("moves in a {} circle", "moving in a {} circle"))
_CHANGE_WORDS = {
    "turning": ("turning", "spinning", "rotating"),
    "growing": ("growing", "getting bigger"),
    "shrinking": ("shrinking", "getting smaller"),
}
_PATTERN_WORDS = {
    "smooth": ("a smooth {} background", "a {} background", "a plain {} background"),
    "striped": ("a striped {} background", "{} stripes", "a {} background with stripes"),
    "dotted": ("a dotted {} background", "{} dots", "a {} background with dots"),
    "grid": ("a {} grid background", "a {} grid", "a {} background with a grid"),
    "cloudy": ("a cloudy {} background", "soft {} clouds", "a {} background with clouds"),
}


@dataclass(frozen=True)
class ObjectSpec:
    """One object: everything a caption can say about it."""

    shape: str
    colour: str
    texture: str
    size: str
    motion: str
    change: str = "none"


@dataclass(frozen=True)
class ClipSpec:
    """One clip. `order` says where `other` is drawn relative to the main object: "front" or "behind"."""

    main: ObjectSpec
    other: ObjectSpec | None
    order: str
    pattern: str
    backdrop: str
    camera: str


def is_held_out(item: ObjectSpec) -> bool:
    """True for the combinations (about 1 in 17) that no training clip may contain.

    The weights are coprime to 17, so changing any single attribute leaves the held-out set: every held-out
    combination has trained neighbours, and what is tested is composition rather than unknown words.
    """
    index = 3 * SHAPES.index(item.shape) + 5 * COLOURS.index(item.colour)
    index += 7 * TEXTURES.index(item.texture) + 11 * MOTIONS.index(item.motion)
    return index % 17 == 0


def sample_object(rng: random.Random, second: bool = False) -> ObjectSpec:
    """Draw an object; a second one is plainer, so that two objects never make a restless picture."""
    texture = rng.choice(TEXTURES) if rng.random() < (0.35 if second else 0.8) else "plain"
    change = rng.choice(CHANGES[1:]) if rng.random() < (0.0 if second else 0.4) else "none"
    shape, motion = rng.choice(SHAPES), rng.choice(MOTIONS)
    if change == "turning" and shape in ("ball", "ring") and texture == "plain":
        change = "none"  # nothing would be seen
    return ObjectSpec(shape, rng.choice(COLOURS), texture, rng.choice(SIZES), motion, change)


def _trained_object(rng: random.Random, second: bool = False) -> ObjectSpec:
    while is_held_out(item := sample_object(rng, second)):
        pass
    return item


def sample_spec(rng: random.Random) -> ClipSpec:
    """Draw a training clip: never a held-out combination, colours always apart from each other."""
    main = _trained_object(rng)
    other = None
    if rng.random() < 0.3:
        while other is None or other.colour == main.colour:
            other = _trained_object(rng, second=True)
    return _with_scene(rng, main, other)


def _with_scene(rng: random.Random, main: ObjectSpec, other: ObjectSpec | None) -> ClipSpec:
    taken = {main.colour, other.colour if other else "", "teal" if main.colour == "cyan" else ""}
    backdrop = rng.choice([name for name in BACKDROPS if name not in taken])
    camera = rng.choice(CAMERAS[1:]) if rng.random() < 0.5 else "still"
    return ClipSpec(main, other, rng.choice(("front", "behind")), rng.choice(PATTERNS), backdrop, camera)


def _motion_words(motion: str, rng: random.Random) -> tuple[str, str]:
    """Return one wording of a motion as (finite verb phrase, -ing phrase)."""
    if motion in ("clockwise", "counterclockwise"):
        finite, ing = rng.choice(_ORBIT)
        return finite.format(motion), ing.format(motion)
    fixed = {"still": _STILL, "bounce": _BOUNCE, "swing": _SWING, "up": _RISE, "down": _FALL}.get(motion, ())
    if fixed and (motion in ("still", "bounce", "swing") or rng.random() < 0.4):
        return rng.choice(fixed)
    finite, ing = rng.choice(_GO)
    where = motion if motion in ("up", "down") else f"to the {motion}" if rng.random() < 0.5 else motion
    if " " in motion:
        vertical, side = motion.split()
        where = rng.choice((f"{vertical} and to the {side}", f"diagonally {vertical} and {side}", motion))
    return f"{finite} {where}", f"{ing} {where}"


def _object_words(item: ObjectSpec, rng: random.Random, full: bool) -> str:
    """Name the object. A plain texture and a medium size often go without saying, the other ones rarely."""
    shape = rng.choice(_SHAPE_WORDS.get(item.shape, (item.shape,)))
    colour = rng.choice(_COLOUR_WORDS.get(item.colour, (item.colour,)))
    say_size = full or rng.random() < (0.1 if item.size == "medium" else 0.9)
    say_texture = full or rng.random() < (0.25 if item.texture == "plain" else 0.95)
    size = [rng.choice(_SIZE_WORDS[item.size])] if say_size and (item.size != "medium" or not full) else []
    after = ""
    texture = [item.texture] if say_texture else []
    if texture and item.texture in _TEXTURE_AFTER and rng.random() < 0.3:
        texture, after = [], f" with {rng.choice(_TEXTURE_AFTER[item.texture])}"
    words = " ".join([*size, *texture, colour, shape])
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}{after}"


def _action(item: ObjectSpec, rng: random.Random, full: bool, finite: bool) -> str:
    words = _motion_words(item.motion, rng)[0 if finite else 1]
    if item.change != "none" and (full or rng.random() < 0.9):
        words += (" while " if finite or rng.random() < 0.5 else " and ") + rng.choice(_CHANGE_WORDS[item.change])
    return words


def _camera_words(camera: str, rng: random.Random) -> str:
    if camera == "still":
        return rng.choice(("the camera is still", "still camera"))
    return f"the camera {'zooms' if camera in ('in', 'out') else 'pans'} {camera}"


def write_caption(spec: ClipSpec, rng: random.Random, full: bool = False) -> str:
    """Put a clip into words; `full` states every attribute, otherwise parts are left out at random."""
    finite = full or rng.random() < 0.7
    text = f"{_object_words(spec.main, rng, full)} {_action(spec.main, rng, full, finite)}"
    if not full and rng.random() < 0.05:
        text = _object_words(spec.main, rng, full)
    if spec.other is not None:
        where = "in front of it" if spec.order == "front" else "behind it"
        action = _action(spec.other, rng, full, finite=True)
        text += f" while {_object_words(spec.other, rng, full)} {action} {where}"
    if full or rng.random() < 0.75:
        place = rng.choice(_PATTERN_WORDS[spec.pattern]).format(spec.backdrop)
        text = f"over {place}, {text}" if rng.random() < 0.15 else f"{text}{rng.choice((' over', ' on', ', over'))} {place}"
    if (full or rng.random() < 0.9) if spec.camera != "still" else rng.random() < 0.2:
        text += f", {_camera_words(spec.camera, rng)}"
    if not full and rng.random() < 0.05:
        text = f"a video of {text}"
    return text.replace(" a orange", " an orange")


def vocabulary() -> list[str]:
    """Every word and mark the grammar can produce, sorted: the whole of what the tokenizer needs to know."""
    phrases = [*SHAPES, *COLOURS, *TEXTURES, *SIZES, *MOTIONS, *BACKDROPS, *CAMERAS, "a an while and with over on of ,"]
    phrases += ["it in front behind the camera is still pans zooms diagonally to background video grid stripes . !"]
    for table in (_SHAPE_WORDS, _COLOUR_WORDS, _SIZE_WORDS, _TEXTURE_AFTER, _CHANGE_WORDS, _PATTERN_WORDS):
        phrases += [phrase for options in table.values() for phrase in options]
    phrases += [phrase for pairs in (_GO, _STILL, _RISE, _FALL, _BOUNCE, _SWING, _ORBIT) for p in pairs for phrase in p]
    return sorted({word for phrase in phrases for word in phrase.replace("{}", " ").split()})


def held_out_objects() -> list[ObjectSpec]:
    """All held-out combinations in a fixed order (size is filled in by whoever uses them)."""
    items = [ObjectSpec(s, c, t, "medium", m) for s in SHAPES for c in COLOURS for t in TEXTURES for m in MOTIONS]
    return [item for item in items if is_held_out(item)]


def _take_even(items: list[ObjectSpec], count: int, rng: random.Random) -> list[ObjectSpec]:
    """Pick `count` items so that every shape, colour, texture and motion comes up about equally often."""
    pool, chosen = list(items), []
    used: dict[str, int] = {}
    for _ in range(count):
        rng.shuffle(pool)
        best = min(pool, key=lambda o: sum(4 ** used.get(v, 0) for v in (o.shape, o.colour, o.texture, o.motion)))
        pool.remove(best)
        chosen.append(best)
        for value in (best.shape, best.colour, best.texture, best.motion):
            used[value] = used.get(value, 0) + 1
    return chosen


def evaluation_specs(count: int = 64) -> list[tuple[str, ClipSpec]]:
    """Full captions of held-out objects with the clips that they describe, in the order of `evaluation_items`."""
    rng = random.Random(2026)
    found: list[tuple[str, ClipSpec]] = []
    for index, base in enumerate(_take_even(held_out_objects(), count, rng)):
        change = CHANGES[index % 4] if base.texture != "plain" or index % 4 != 1 else "none"
        main = ObjectSpec(base.shape, base.colour, base.texture, SIZES[index % 3], base.motion, change)
        other = None
        while index % 4 == 3 and (other is None or other.colour == main.colour):
            other = _trained_object(rng, second=True)
        scene = _with_scene(rng, main, other)
        spec = ClipSpec(main, other, scene.order, PATTERNS[index % 5], scene.backdrop, CAMERAS[index % 7])
        found.append((write_caption(spec, rng, full=True), spec))
    return found


def evaluation_items(count: int = 64) -> list[dict[str, Any]]:
    """The held-out evaluation set: full captions of held-out objects, each with the seed of its noise."""
    captions = (caption for caption, _ in evaluation_specs(count))
    return [{"prompt": caption, "seed": 1000 + index} for index, caption in enumerate(captions)]
