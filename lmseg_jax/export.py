"""`lmseg export`: a trained model for others to use, without its training state."""

import argparse
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

import lmseg_jax
from lmseg_jax import assembly, exported, loading, report, scoring, sharding, stablehlo, state
from lmseg_jax.errors import UserError
from lmseg_jax.loading import Stored
from lmseg_jax.segmenter import Segmenter, of_stored

FORMATS = {"orbax": ("orbax",), "safetensors": ("safetensors",), "both": tuple(exported.FORMS)}
TOLERANCE = 1e-4  # of the largest value of the source's answer
HALF_TOLERANCE = 1e-2  # float16 rounds each weight by up to 5e-4 of it; the demo: 1e-3 in all
SIZE = (128, 160)  # of the random image that answers are compared on
PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "safetensors", "numpy")


def main(argv: Sequence[str]) -> int:
    """Writes an export, reads it back, compares its answers, and only then gives it its name.

    Raises:
      UserError: a flag or the checkpoint is wrong, or the export answers otherwise.
    """
    parser = argparse.ArgumentParser(prog="lmseg export", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--checkpoint", required=True, help='a workdir, an export, a converted model, or "worlds"')
    add("--output", required=True, type=Path, help="a new folder")
    add("--format", choices=FORMATS, default="orbax", help="of the weights (default: orbax)")
    add("--half", action="store_true", help="the safetensors file in float16")
    add("--stablehlo", action="store_true", help="also the network for programs without lmseg_jax")
    add("--text-free", action="store_true", help="no text tower: known names only")
    add("--score", action="store_true", help="score the export on its run's evaluation sets")
    options = parser.parse_args(argv)
    if options.half and "safetensors" not in FORMATS[options.format]:
        raise UserError("--half: is for safetensors; add --format safetensors or both")
    if options.score and (options.text_free or not loading.is_workdir(Path(options.checkpoint))):
        raise UserError("--score: needs a training workdir as --checkpoint, and a text tower")
    with new_folder(options.output) as folder:
        with jax.default_device(cpu()):
            manifest, again = fill(folder, options)
        if options.score:
            manifest["scores"] = score(again, Path(options.checkpoint))
            print(report.format_scores(manifest["scores"], None))
        exported.seal(folder, manifest)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{options.output}: {size / 1e6:.1f} MB; lmseg_jax.load({str(options.output)!r})")
    return 0


def fill(folder: Path, options: argparse.Namespace) -> tuple[dict, Segmenter]:
    """Writes everything that the flags ask for, and compares it.

    Args:
      folder: an empty one.
      options: of the command line.

    Returns:
      The manifest, and the model that was read back.

    Raises:
      UserError: the checkpoint is wrong or does not fit the flags, or answers differ.
    """
    forms = FORMATS[options.format]
    source = loading.read(options.checkpoint)
    model = of_stored(source)
    if model.text_free and not options.text_free:
        raise UserError(f"{options.checkpoint}: has no text tower; add --text-free")
    if options.stablehlo and source.model.head != "text":
        raise UserError(
            f"--stablehlo: takes names as an input, this model has head {source.model.head!r},"
            " whose classes are fixed; leave it out"
        )
    whole = contents(source, model, text_free=options.text_free)
    manifest = exported.write(folder, whole, forms=forms, half=options.half)
    manifest["versions"] = versions()
    exported.seal(folder, manifest)
    manifest["compared"] = {}
    for form in forms:
        again = of_stored(loading.of_export(folder, form=form))
        half = options.half and form == "safetensors"
        tolerance = HALF_TOLERANCE if half else TOLERANCE
        manifest["compared"][form] = compared(model, again, tolerance=tolerance, what=form)
    if options.stablehlo:
        stablehlo.write(folder, source, text=model.text_of_training())
        manifest["compared"]["stablehlo"] = compared_artefact(
            model, folder / stablehlo.NETWORK, tolerance=TOLERANCE
        )
    for form, found in manifest["compared"].items():
        largest, tolerance = found["largest_difference"], found["tolerance"]
        print(f"{form}: read back; answers differ by {largest:.1e} at most ({tolerance:.0e})")
    return manifest, again


def cpu() -> jax.Device:
    """Where answers are compared: accelerators round products more coarsely than 1e-4.

    Raises:
      UserError: JAX was told to leave the CPU out.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError(
            f"JAX_PLATFORMS leaves out the CPU, where exports are compared ({error}); add cpu to it"
        ) from error


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` that becomes it if nothing goes wrong, and else is removed.

    Raises:
      UserError: `output` is there and not an empty folder, or cannot be made.
    """
    output = output.expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output}: is there already; name a new folder")
    try:
        parent = output.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=parent))
    except OSError as error:
        raise UserError(f"--output {output}: cannot write: {error.strerror or error}") from error
    try:
        yield folder
        folder.chmod(0o755)  # temporary folders are their owner's only
        folder.replace(output)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            problem = f"cannot write: {error.strerror or error}"
            raise UserError(f"--output {output}: {problem}") from error
        raise


def contents(source: Stored, model: Segmenter, *, text_free: bool) -> exported.Exported:
    """What is written of a model.

    Args:
      source: the model.
      model: the same, to embed its names.
      text_free: leave out what reads words.

    Raises:
      UserError: the model reads no words anyway.
    """
    reads = model.model.head == "text"
    if text_free and not reads:
        raise UserError(
            f"--text-free: this model has head {model.model.head!r}, which never reads words;"
            " leave it out"
        )
    params, frozen = source.params, source.frozen
    if text_free:
        params, frozen = state.without_text(params), state.without_text(frozen)
    values = json.loads(json.dumps(source.model.to_dict()))  # lists for tuples
    arrays = exported.arrays_of(params, frozen, text=model.text_of_training() if reads else None)
    return exported.Exported(values, arrays, source.spaces, text_free, source.origin)


def compared(
    model: Segmenter, other: Segmenter, *, tolerance: float, what: str
) -> dict[str, float]:
    """The largest difference between two models' answers to a random image in every taxonomy.

    Args:
      model: the source.
      other: its export. If it reads words, the embedding of words that are in no taxonomy is
        compared, too.
      tolerance: largest difference allowed, relative to the largest value of the source.
      what: of `other`, for the message.

    Returns:
      {"largest_difference", "tolerance"}.

    Raises:
      UserError: the difference is larger, or no number.
    """
    image = random_image()
    found = []
    for name in model.spaces:
        answers = (one.raw(image, taxonomy=name) for one in (model, other))
        for part, *pair in zip(("class", "mask"), *answers, strict=True):
            found.append(_difference(*pair, tolerance, f"{what}: {part} logits in {name}"))
    if model.model.head == "text" and not other.text_free:
        words = (one.embeddings(classes=["anything else"]) for one in (model, other))
        found.append(_difference(*words, tolerance, f"{what}: the embedding of words"))
    return {"largest_difference": max(found), "tolerance": tolerance}


def compared_artefact(model: Segmenter, path: Path, *, tolerance: float) -> dict[str, float]:
    """The same of a StableHLO artefact, for two images and names that are padded.

    Raises:
      UserError: the difference is larger, or no number.
    """
    taxonomy = next(iter(model.spaces))
    rows = model.embeddings(taxonomy=taxonomy)
    valid = np.arange(len(rows) + 2) < len(rows)
    images = np.stack([random_image(), random_image()[::-1]])
    answer = stablehlo.run(
        path,
        images,
        inside=np.ones(images.shape[:3], bool),
        embeddings=np.pad(rows, ((0, 2), (0, 0))),
        valid=valid,
    )
    parts = {"class": answer["logits"][:, :, valid], "mask": answer["masks"]}
    found = []
    for number, image in enumerate(images):
        for part, expected in zip(parts, model.raw(image, taxonomy=taxonomy), strict=True):
            where = f"stablehlo: {part} logits in {taxonomy}"
            found.append(_difference(expected, parts[part][number], tolerance, where))
    return {"largest_difference": max(found), "tolerance": tolerance}


def random_image() -> np.ndarray:
    """uint8 [H, W, 3], always the same."""
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def _difference(expected: np.ndarray, found: np.ndarray, tolerance: float, where: str) -> float:
    """The largest difference, as a share of the largest value expected; UserError if too large."""
    share = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not share <= tolerance:  # also where it is no number
        raise UserError(
            f"{where} differ by {share:.1e} of the largest value, {tolerance:.0e} is allowed;"
            " nothing was written"
        )
    return share


def score(model: Segmenter, workdir: Path) -> dict[str, dict[str, float]]:
    """Scores of a model on the evaluation sets of a run: {dataset: {metric: percent}}.

    Raises:
      UserError: the run's data is not there.
    """
    config, cards, _ = loading.run_of(workdir)
    config.evaluation.pictures = 0
    vocabulary = assembly.vocabulary_of(config, cards)
    mesh = sharding.local_mesh()
    network = scoring.Network(state.graph(config.model, vocabulary), vocabulary, mesh)
    network.load(*jax.device_put((model.params, model.frozen), sharding.replicated(mesh)))
    scores, _ = scoring.evaluate_all(network, assembly.evaluation_sets(config, cards), config)
    return report.numbers(scores)


def versions() -> dict[str, str]:
    """Versions of the packages that an export depends on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"lmseg_jax": lmseg_jax.__version__} | found


if __name__ == "__main__":
    from lmseg_jax.cli import start

    start("export")
