"""`lmseg app`: a page on which an image is segmented in any words (docs/app.md)."""

import argparse
import html
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from lmseg_jax import visualize
from lmseg_jax.datasets.card import TASKS, load_card, shipped_cards
from lmseg_jax.datasets.formats import open_source
from lmseg_jax.errors import UserError
from lmseg_jax.loading import SHIPPED
from lmseg_jax.predict import parted
from lmseg_jax.segmenter import Segmenter, load

OWN = "the words below"
NOTHING = "(nothing)"  # pixels of a panoptic answer that no segment holds
SMALLEST, LARGEST = 640, 1280  # longest side of the pictures on the page, pixels
SCENES = 2  # of each world, as examples
INSTALL = "pip install 'lmseg_jax[app]'"
STYLE = """
.gradio-container {max-width: 1120px !important; margin: auto}
#overlay img, #image img {
  image-rendering: pixelated; width: 100% !important; height: 100% !important; object-fit: contain
}
.areas {width: 100%; border: none !important; font-size: 15px}
.areas tr {border: none !important}
.areas td {padding: 3px 8px !important; border: none !important}
.areas .swatch {width: 18px; height: 18px; border-radius: 4px; border: 1px solid #0004}
.areas .share {width: 45%}
.areas .bar {height: 10px; border-radius: 5px; min-width: 1px}
.areas .number {text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap}
"""


@dataclass(frozen=True)
class Area:
    """How much of an image a class takes.

    Attributes:
      name: of the class, or `NOTHING`.
      color: RGB, 0..255, as in the picture.
      share: of the image's pixels, 0..1.
      segments: how many there are.
    """

    name: str
    color: tuple[int, int, int]
    share: float
    segments: int


@dataclass(frozen=True)
class Answer:
    """What the page shows.

    Attributes:
      picture: uint8 [H, W, 3], the image in the colours of its classes.
      areas: largest first. Classes that do not occur are listed, too, unless more than
        `visualize.LEGEND_LIMIT` were asked for.
    """

    picture: np.ndarray
    areas: tuple[Area, ...]


def answer(
    model: Segmenter,
    image: np.ndarray | None,
    *,
    words: str = "",
    taxonomy: str | None = None,
    task: str = "semantic",
) -> Answer:
    """Segments an image.

    Args:
      model: that is asked.
      image: uint8 [H, W, 3], RGB, or None if nobody has chosen one. One whose longest side is above
        `LARGEST` is shrunk first; small ones are shown enlarged.
      words: with semicolons between them, such as "road; sofa, couch". Not read if there is a
        taxonomy.
      taxonomy: see `Segmenter.segment`; None = the words.
      task: "semantic" or "panoptic".

    Raises:
      UserError: the image or the words are missing, or the model does not know what is asked for.
    """
    if image is None:
        raise UserError("there is no image: drop one, or click one of the scenes")
    classes = parted(words) if taxonomy is None else None
    if classes == []:
        raise UserError("there are no words: type some, such as road; car; sky, or pick a taxonomy")
    height, width = image.shape[:2]
    if (scale := LARGEST / max(height, width)) < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    found = model.segment(image, classes, taxonomy=taxonomy, task=task)
    factor = max(1, SMALLEST // max(image.shape[:2]))
    shown, labels, segments = (
        visualize.enlarge(x, factor) for x in (image, found.labels, found.segments)
    )
    colors = found.taxonomy.colors
    picture = visualize.overlay(shown, labels, colors, alpha=0.7, segments=segments)
    counts = np.bincount(found.labels.ravel() + 1, minlength=len(found.names) + 1)
    shares = counts / found.labels.size
    areas = [
        Area(name, tuple(map(int, colors[k])), float(shares[k + 1]), len(of_class))
        for k, name in enumerate(found.names)
        if (of_class := [s for s in found.segments_info if s["category_id"] == k])
        or len(found.names) <= visualize.LEGEND_LIMIT
    ]
    areas.sort(key=lambda area: -area.share)
    if counts[0]:
        areas.append(Area(NOTHING, visualize.PAPER, float(shares[0]), 0))
    return Answer(picture, tuple(areas))


def table(areas: Sequence[Area], *, task: str) -> str:
    """HTML of a legend: colour, name, a bar as long as the share, percent, number of segments."""
    rows = []
    for area in areas:
        color = "rgb({}, {}, {})".format(*area.color)
        cells = [
            f'<td><div class="swatch" style="background: {color}"></div></td>',
            f"<td>{html.escape(area.name)}</td>",
            f'<td class="share"><div class="bar" style="background: {color};'
            f' width: {100 * area.share:.1f}%"></div></td>',
            f'<td class="number">{100 * area.share:.1f} %</td>',
        ]
        if task == "panoptic":
            count = f"{area.segments} segment" + "s" * (area.segments != 1)
            cells.append(f'<td class="number">{count if area.name != NOTHING else ""}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f'<table class="areas">{"".join(rows)}</table>'


def scenes(folder: Path) -> list[str]:
    """Renders scenes of every world that no training has seen; the paths of their PNGs."""
    paths = []
    for name in shipped_cards():
        card = load_card(name)
        if card.format == "world":
            source = open_source(card, "val", root="")
            for number in range(SCENES):
                paths.append(str(folder / f"{name}_{number}.png"))
                Image.fromarray(source[number].image).save(paths[-1])
    return paths


def library():
    """Gradio, told to report nothing to anybody.

    Raises:
      UserError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"lmseg app: needs Gradio, which is not installed; {INSTALL}") from error
    return gradio


def serve(
    model: Segmenter, *, title: str, folder: Path, host: str, port: int | None, share: bool = False
):
    """Starts the page's server in a thread.

    Args:
      model: that answers.
      title: what the page says that it asks.
      folder: for the scenes and for what is dropped on the page; the caller removes it.
      host, port: to listen on; None = the first port from 7860 on that is free.
      share: True lets Gradio forward a public address.

    Returns:
      The page (`gradio.Blocks`: `close()` stops it) and its address.

    Raises:
      UserError: Gradio is not installed, or the port is taken.
    """
    gradio = library()
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    page = _page(gradio, model, title=title, examples=scenes(folder))
    try:
        _, local, public = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            theme=gradio.themes.Soft(
                font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
            css=STYLE,
        )
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: cannot listen there ({error})") from error
    return page, public or local


def _page(gradio, model: Segmenter, *, title: str, examples: Sequence[str]):
    """The page: what is asked on the left, the answer on the right."""
    reads = model.model.head == "text"
    choices = [OWN] * reads + list(model.taxonomies)

    def ask(image, words, taxonomy, task):
        try:
            found = answer(
                model, image, words=words, taxonomy=None if taxonomy == OWN else taxonomy, task=task
            )
        except UserError as error:
            raise gradio.Error(html.escape(str(error)), print_exception=False) from error
        return found.picture, table(found.areas, task=task)

    with gradio.Blocks(title="lmseg", analytics_enabled=False, fill_width=True) as page:
        gradio.Markdown(f"## lmseg\nOne image, asked in any words. Model: `{title}`")
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(
                    label="Image",
                    type="numpy",
                    sources=["upload", "clipboard"],
                    height=280,
                    elem_id="image",
                )
                gradio.Examples(
                    examples=[[path] for path in examples],
                    inputs=[image],
                    label="Scenes of the demo's worlds, never seen in training",
                )
                taxonomy = gradio.Radio(
                    choices, value=choices[0], label="Look for", elem_id="taxonomy"
                )
                words = gradio.Textbox(
                    label="Words",
                    info="semicolons between classes, commas between words for one class",
                    placeholder="red object; ground, grass; sky",
                    visible=reads,
                    elem_id="words",
                )
                task = gradio.Radio(list(TASKS), value=TASKS[0], label="Task", elem_id="task")
                button = gradio.Button("Segment", variant="primary", elem_id="segment")
            with gradio.Column():
                overlay = gradio.Image(
                    label="Answer",
                    format="png",
                    height=400,
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_id="overlay",
                )
                areas = gradio.HTML(elem_id="areas")
        asked = [image, words, taxonomy, task]
        gradio.on([button.click, words.submit], ask, inputs=asked, outputs=[overlay, areas])
        if reads:  # who types words means them
            words.input(None, js=f"() => {OWN!r}", outputs=taxonomy)
    return page


def main(argv: Sequence[str]) -> int:
    """Serves the page until Ctrl-C.

    Raises:
      UserError: Gradio is not installed, or a flag or the checkpoint is wrong.
    """
    parser = argparse.ArgumentParser(prog="lmseg app", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    known = ", ".join(SHIPPED)
    add("--checkpoint", default="worlds", help=f"a workdir, an export or {known} (default)")
    add("--host", default="127.0.0.1", help="to listen on; 0.0.0.0 = the whole network may ask")
    add("--port", type=int, help="default: the first one from 7860 on that is free")
    add("--share", choices=("off", "on"), default="off", help="on: public, through Gradio's server")
    options = parser.parse_args(argv)
    library()  # says what is missing before weights are read
    model = load(options.checkpoint)
    with tempfile.TemporaryDirectory(prefix="lmseg-app-", ignore_cleanup_errors=True) as folder:
        page, address = serve(
            model,
            title=options.checkpoint,
            folder=Path(folder),
            host=options.host,
            port=options.port,
            share=options.share == "on",
        )
        print(f"{address}   (Ctrl-C ends it)", flush=True)
        page.block_thread()
    return 0


if __name__ == "__main__":
    from lmseg_jax.cli import start

    start("app")
