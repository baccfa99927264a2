"""Augmentation and test size of a dataset: the [augmentation] and [test] tables of a card."""

from dataclasses import dataclass, replace

from lmseg_jax.datasets.table import Table

FLIPS = ("none", "horizontal", "both")
STRIDE = 32  # of the network's deepest map: sides of a crop are multiples of it


@dataclass(frozen=True)
class DetrCrop:
    """What one image in two loses before it is resized (DETR's augmentation of COCO).

    Attributes:
      short_sides: one is drawn; the image's short side is resized to it, whatever the long one is.
      sides: shortest and longest side of the window that is cut out then.
    """

    short_sides: tuple[int, ...]
    sides: tuple[int, int]


@dataclass(frozen=True)
class Recipe:
    """A_i, how a dataset is augmented in training (Sec. 3.5).

    Attributes:
      short_sides: one is drawn; the image's short side is resized to it.
      max_side: the long side never exceeds it.
      crop: height and width of the crop, smaller images are padded; the bucket's shape.
      color: True applies the SSD colour jitter.
      flip: "none" | "horizontal" | "both".
      order: the steps in order, of "resize", "crop" or "detr_crop", "color", "flip".
      detr_crop: None where every image is cut to `crop`; else `crop` is a canvas that holds whole
        images, lying for images that are wider than high and upright for the others.
    """

    short_sides: tuple[int, ...]
    max_side: int
    crop: tuple[int, int]
    color: bool
    flip: str
    order: tuple[str, ...]
    detr_crop: DetrCrop | None = None

    def oriented(self, height: int, width: int) -> "Recipe":
        """This recipe with the canvas that images of this size get; itself without `detr_crop`."""
        if self.detr_crop is None:
            return self
        low, high = sorted(self.crop)
        return replace(self, crop=(high, low) if height > width else (low, high))


@dataclass(frozen=True)
class TestRule:
    """How an image is resized before it is segmented: short side, limit of the long side."""

    short_side: int
    max_side: int

    def times(self, scale: float) -> "TestRule":
        """Both lengths times `scale`, rounded."""
        return TestRule(round(scale * self.short_side), round(scale * self.max_side))


def read_recipe(table: Table) -> Recipe:
    """Reads and checks [augmentation].

    Raises:
      UserError: names the card's file, the key, what was found and what is expected.
    """
    recipe = Recipe(
        short_sides=table.numbers("short_sides", 1, 2**16),
        max_side=table.number("max_side", 1, 2**16),
        crop=table.numbers("crop", STRIDE, 2**16),
        color=table.take("color", bool),
        flip=table.choice("flip", FLIPS),
        order=table.texts("order"),
        detr_crop=_detr_crop(table),
    )
    table.close()
    _check_order(table, recipe)
    if not recipe.short_sides or max(recipe.short_sides) > recipe.max_side:
        expected = f"expected lengths up to max_side = {recipe.max_side}"
        raise table.error("short_sides", f"is {list(recipe.short_sides)}; {expected}")
    if len(recipe.crop) != 2 or any(side % STRIDE for side in recipe.crop):
        expected = f"expected [height, width], multiples of {STRIDE}"
        raise table.error("crop", f"is {list(recipe.crop)}; {expected}")
    if recipe.detr_crop is None and max(recipe.crop) > recipe.max_side:
        expected = f"no image is larger than max_side = {recipe.max_side}"
        raise table.error("crop", f"is {list(recipe.crop)}; {expected}")
    least = (max(recipe.short_sides), recipe.max_side)
    if recipe.detr_crop and (recipe.crop[0] < least[0] or recipe.crop[1] < least[1]):
        expected = (
            f"with detr_crop it holds whole images: at least {list(least)}, upright ones turn it"
        )
        raise table.error("crop", f"is {list(recipe.crop)}; {expected}")
    return recipe


def _detr_crop(table: Table) -> DetrCrop | None:
    values = table.take("detr_crop", dict, None)
    if values is None:
        return None
    inner = Table(table.path, f"{table.where}detr_crop.", values)
    short_sides = inner.numbers("short_sides", 1, 2**16)
    sides = inner.numbers("sides", 1, 2**16)
    inner.close()
    if not short_sides:
        raise inner.error("short_sides", "is []; expected the lengths that one is drawn from")
    if len(sides) != 2 or sides[0] > sides[1]:
        raise inner.error("sides", f"is {list(sides)}; expected [shortest, longest]")
    return DetrCrop(short_sides, sides)


def _check_order(table: Table, recipe: Recipe) -> None:
    """Each step once that the other keys ask for, none that they rule out."""
    used = {
        "detr_crop": recipe.detr_crop is not None,
        "resize": True,
        "crop": recipe.detr_crop is None,
        "color": recipe.color,
        "flip": recipe.flip != "none",
    }
    needed = {step for step, on in used.items() if on}
    allowed = needed | {"color", "flip"}
    order = recipe.order
    if not needed <= set(order) <= allowed or len(set(order)) != len(order):
        expected = f"expected each of {', '.join(s for s in used if s in needed)} once"
        raise table.error("order", f"is {list(order)}; {expected}")
    if recipe.detr_crop and order.index("detr_crop") > order.index("resize"):
        raise table.error("order", f"is {list(order)}; expected detr_crop before resize")


def read_test_rule(table: Table) -> TestRule:
    """Reads and checks [test].

    Raises:
      UserError: names the card's file, the key, what was found and what is expected.
    """
    rule = TestRule(table.number("short_side", 1, 2**16), table.number("max_side", 1, 2**16))
    table.close()
    if rule.short_side > rule.max_side:
        expected = f"expected at most max_side = {rule.max_side}"
        raise table.error("short_side", f"is {rule.short_side}; {expected}")
    return rule
