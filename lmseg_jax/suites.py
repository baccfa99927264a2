"""The comparisons of the paper: which models are trained, and which claims they decide."""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Row:
    """One line of a table: a way to make a model of all datasets.

    Attributes:
      name: of files and of `claims`.
      label: for people.
      configs: of its models; several only where each dataset has its own.
      flags: laid over the configs.
      of: name of the row whose trained models are scored again with `flags`; nothing is trained.
      pretraining: config that first makes weights; `{weights}` in `flags` is its workdir.
      method: what rows share that differ in their updates only: they are points of one line in the
        picture of costs.
    """

    name: str
    label: str
    configs: tuple[str, ...]
    flags: tuple[str, ...] = ()
    of: str = ""
    pretraining: str = ""
    method: str = ""


@dataclass(frozen=True)
class Claim:
    """That one row is better than the best of others.

    Attributes:
      text: what the paper says.
      better: name of the row.
      others: names of the rows that it is compared with; the best mean of their seeds counts.
      paper: the differences in the paper where they are known, by metric ("miou", "pq").
      about: what those are differences of.
      words: the row answers in any taxonomy, so the claim is also about cells off the diagonal.
    """

    text: str
    better: str
    others: tuple[str, ...]
    paper: dict[str, tuple[float, ...]] = field(default_factory=dict)
    about: str = ""
    words: bool = False


@dataclass(frozen=True)
class Suite:
    """Rows, claims, and how many runs of each row are made if nothing else is asked."""

    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    seeds: int


# Flags of tiny models and short runs, which try the machinery.
QUICK = tuple(
    f"--config.{key}={value}"
    for key, value in {
        "optimizer.steps": 2,
        "optimizer.warmup": 0,
        "data.evaluate_limit": 1,
        "data.max_targets": 8,
        "batching.policy": "padded",
        "matcher.where": "device",
        "pretrained.image": "",
        "model.resnet.norm": "group",
        "model.resnet.depths": "1,1,1,1",
        "model.resnet.width": 8,
        "model.pixel_decoder.width": 16,
        "model.queries": 8,
        "model.width": 16,
        "model.decoder.layers": 1,
        "evaluation.pictures": 0,
        "log.every": 1,
    }.items()
)

BASELINES = ("multi_head", "manual", "single")
_BASELINES_DRAWN = ("multi_head_drawn", "manual_drawn")

_MARGINS = {"miou": (0.59, 0.28, 0.22), "pq": (2.70, 3.87, 2.47)}
_WORLDS = ("world_patterns", "world_colors", "world_coarse")
_STREETS = ("camvid", "labelmefacade")


def _methods(config: str, cards: tuple[str, ...], *, lmseg: str) -> tuple[Row, ...]:
    """LMSeg and its baselines, as in Table 1."""
    return (
        Row("lmseg", "LMSeg", (lmseg,)),
        Row("multi_head", "multi-head", (f"{config}:multi_head",)),
        Row("manual", "manual taxonomy", (f"{config}:manual_taxonomy",)),
        Row(
            "manual_union",
            "manual taxonomy, not restricted",
            (f"{config}:manual_taxonomy",),
            flags=("--config.model.manual.restrict=False",),
            of="manual",
        ),
        Row("single", "a model for each", tuple(f"{config}:{card}" for card in cards)),
    )


def _as_drawn(*rows: Row) -> tuple[Row, ...]:
    """The models of other rows, asked about images of the size that they were trained on."""
    return tuple(
        Row(
            f"{row.name}_drawn",
            f"{row.label}, images as drawn",
            row.configs,
            flags=("--config.evaluation.scale=0.75",),
            of=row.name,
        )
        for row in rows
    )


def _worlds(changes: str) -> tuple[str, ...]:
    return (f"worlds:lmseg,{changes}",)


_WORLD_METHODS = _methods("worlds", _WORLDS, lmseg="worlds:lmseg")
_BEATS = Claim(
    "LMSeg beats the better baseline",
    "lmseg",
    BASELINES,
    paper=_MARGINS,
    about="three budgets",
    words=True,
)
_BUDGETS = {600: "160k and 320k", 1200: "320k and 640k", 2400: "640k and 960k"}  # ours: the paper's


def _at(updates: int, row: Row) -> Row:
    """A row of the suite worlds with other updates; with those of that suite it is the same row."""
    label = f"{row.label}, {updates:,} updates"
    if updates == 1200:
        return replace(row, label=label, method=row.label)
    configs = tuple(f"{config},{updates}" for config in row.configs)
    return Row(f"{row.name}_{updates}", label, configs, method=row.label)


def _budgets() -> Suite:
    """The paper's comparison at three budgets, the longest four times the shortest."""
    rows, claims = [], []
    margins = zip(_MARGINS["miou"], _MARGINS["pq"], strict=True)
    for (updates, about), (miou, pq) in zip(_BUDGETS.items(), margins, strict=True):
        found = [_at(updates, row) for row in _WORLD_METHODS if not row.of]
        rows += found
        claims.append(
            Claim(
                f"{_BEATS.text} at {updates:,} updates",
                found[0].name,
                tuple(row.name for row in found[1:]),
                paper={"miou": (miou,), "pq": (pq,)},
                about=about,
                words=True,
            )
        )
    return Suite(tuple(rows), tuple(claims), seeds=1)


SUITES = {
    "worlds": Suite(
        rows=(
            *_WORLD_METHODS,
            *_as_drawn(*_WORLD_METHODS[:3]),
            Row("no_guidance", "LMSeg without guidance", _worlds("no_guidance")),
            Row("text_visual", "LMSeg, text before visual", _worlds("text_visual")),
            Row("no_daa", "LMSeg without DAA", _worlds("no_daa")),
            Row("plain", "no guidance, no DAA", _worlds("no_guidance,no_daa")),
            Row(
                "classifier",
                "no guidance, no DAA, encoder of a classifier",
                _worlds("no_guidance,no_daa"),
                flags=("--config.pretrained.image={weights}/worlds_classifier.safetensors",),
                pretraining="clip_worlds:classifier",
            ),
            Row(
                "shuffled",
                "no guidance, no DAA, shuffled captions",
                _worlds("no_guidance,no_daa"),
                flags=(
                    "--config.pretrained.image={weights}/worlds_clip.safetensors",
                    "--config.pretrained.text={weights}/worlds_clip.safetensors",
                ),
                pretraining="clip_worlds:shuffled",
            ),
        ),
        claims=(
            _BEATS,
            Claim("the same, images as drawn", "lmseg_drawn", _BASELINES_DRAWN, words=True),
            Claim("LMSeg beats multi-head", "lmseg", ("multi_head",), words=True),
            Claim(
                "LMSeg beats multi-head without guidance",
                "no_guidance",
                ("multi_head",),
                words=True,
            ),
            Claim(
                "guidance helps",
                "lmseg",
                ("no_guidance",),
                paper={"miou": (0.50,), "pq": (3.50,)},
                words=True,
            ),
            Claim("guidance helps without DAA", "no_daa", ("plain",), words=True),
            Claim("visual before text", "lmseg", ("text_visual",), words=True),
            Claim("DAA helps", "lmseg", ("no_daa",), words=True),
            Claim("DAA helps without guidance", "no_guidance", ("plain",), words=True),
            Claim("a vision-language encoder helps", "plain", ("classifier",), words=True),
            Claim("better than towers of shuffled captions", "plain", ("shuffled",), words=True),
        ),
        seeds=3,
    ),
    "budgets": _budgets(),
    "camvid_facade": Suite(
        rows=_methods("camvid_facade", _STREETS, lmseg="camvid_facade:lmseg"),
        claims=(_BEATS,),
        seeds=2,
    ),
}
