"""Where weights are: shipped, in the Hugging Face cache, on the hub, or at a path."""

import importlib.resources
from pathlib import Path

from lmseg_jax.errors import UserError

SHIPPED = {"worlds-clip": "assets/worlds_clip.safetensors"}  # package data

# name -> repository and file on the Hugging Face hub; licences are in docs/weights.md
HUB = {
    "openai/rn50": ("timm/resnet50_clip.openai", "open_clip_model.safetensors"),
    "openai/rn101": ("timm/resnet101_clip.openai", "open_clip_model.safetensors"),
    "timm/resnet50_clip.openai": ("timm/resnet50_clip.openai", "model.safetensors"),
    "timm/resnet101_clip.openai": ("timm/resnet101_clip.openai", "model.safetensors"),
    "torchvision/resnet50": ("timm/resnet50.tv_in1k", "model.safetensors"),
    "torchvision/resnet101": ("timm/resnet101.tv_in1k", "model.safetensors"),
}

PICKLED = (".pt", ".pth", ".pkl", ".bin", ".ckpt", ".pickle")


def names() -> list[str]:
    """Every name that stands for weights."""
    return [*SHIPPED, *HUB]


def find(source: str) -> Path:
    """The file or folder that a name or path stands for; may download a file of `HUB`, once.

    Raises:
      UserError: there is nothing, it cannot be downloaded, or it is of a kind that is not read.
    """
    if source in SHIPPED:
        return Path(str(importlib.resources.files("lmseg_jax").joinpath(SHIPPED[source])))
    if source in HUB:
        return _from_hub(source)
    path = Path(source).expanduser()
    if path.suffix.lower() in PICKLED:
        raise UserError(
            f"{path}: {path.suffix} files are pickles, which can run code when they are read, so"
            " they are not; save it as .safetensors with the one line for it in docs/weights.md"
        )
    if not path.exists():
        raise UserError(
            f"pretrained weights {source!r}: no such file; known names are {', '.join(names())},"
            " else give the path of a .safetensors file or of a folder that `lmseg convert` wrote"
        )
    return path


def _from_hub(source: str) -> Path:
    """A file of the hub: from the cache if it is there, which asks no network."""
    # imported here: only weights from the hub need it
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import logging

    repository, file = HUB[source]
    found = try_to_load_from_cache(repository, file)
    if isinstance(found, str):
        return Path(found)
    print(
        f"{source}: fetching {file} of {repository} from the Hugging Face hub"
        " (without a network it tries for half a minute)",
        flush=True,
    )
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it reports every try; one error at the end is enough
    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the library has a dozen, and its HTTP client others
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"pretrained weights {source!r}: {file} of {repository} is neither in the Hugging Face"
            f" cache nor could it be downloaded ({type(error).__name__}: {reason}); where there is"
            f" a network run `hf download {repository} {file}`, then name the path of that file"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
