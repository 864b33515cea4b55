"""What stands in the place of a vocabulary in an own model: [image], [head] and [condition]."""

from __future__ import annotations

from sim.families.reader import Reader
from sim.model import ConditionSpec, HeadSpec, ImageSpec


def read_image(r: Reader) -> ImageSpec | None:
    """[image]; None where the input is tokens of a vocabulary."""
    if "image" not in r.data:
        return None
    t = r.table("image")
    image = ImageSpec(
        size=t.size("size"),
        patch=t.size("patch") or 1,
        channels=t.size("channels"),
        extra_tokens=t.size("extra_tokens", low=0, default=0),
    )
    if image.size % image.patch:
        t.problems.append(f"size {image.size} is not a multiple of patch {image.patch}: correct one")
    t.unknown_keys()
    return image


def read_head(r: Reader) -> HeadSpec | None:
    """[head]; None is the head over the vocabulary."""
    if "head" not in r.data:
        if "image" in r.data:
            r.missing(
                ("head",), 'a model with [image] has no vocabulary: add kind = "linear" and dim, or kind = "none"'
            )
        return None
    t = r.table("head")
    kind = t.text("kind", default="vocabulary", one_of=("vocabulary", "linear", "none"))
    head = None
    if kind == "linear":
        head = HeadSpec(dim=t.size("dim"), pooled=t.flag("pooled", default=False))
    elif kind == "none":
        head = HeadSpec(dim=0)
    elif "image" in r.data:
        t.problems.append(
            'kind "vocabulary" needs a vocabulary, which a model with [image] has not: "linear" or "none"'
        )
    t.unknown_keys()
    return head


def read_condition(r: Reader) -> tuple[ConditionSpec | None, int]:
    """([condition], vectors per half of a layer); (None, 0) where nothing modulates the layers."""
    if "condition" not in r.data:
        return None, 0
    t = r.table("condition")
    spec = ConditionSpec(frequencies=t.size("frequencies"), classes=t.size("classes", low=0, default=0))
    vectors = t.size("vectors", low=2, high=3, default=3)
    t.unknown_keys()
    return spec, max(2, vectors)


def read_vocabulary(r: Reader, image: ImageSpec | None) -> int:
    """vocab_size; none beside [image]."""
    if image is None:
        return r.size("vocab_size")
    if r.has("vocab_size"):
        r.problems.append("vocab_size and [image] both say what the input is: keep one")
    r.used.add("vocab_size")
    return 0
