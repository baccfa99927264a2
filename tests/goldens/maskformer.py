"""Makes tests/fixtures/maskformer: what Hugging Face's MaskFormer computes, small and random.

    python -m tests.goldens.maskformer

needs torch 2.13.0, transformers 5.23.0, scipy and safetensors; it was run with these. The tests
need only NumPy: weights and images are drawn again by `weights` and `image`, so the folder holds
no weights, only their names and shapes.

- config.json, preprocessor_config.json: as `save_pretrained` writes them.
- tensors.json: {name: shape} of its model.safetensors.
- goldens.npz: `logits_HxW` [Q, K + 1] and `masks_HxW` [Q, H/4, W/4] of one image of each size;
  `between_logits`, `between_masks`: those of the first size where decoder_config.auxiliary_loss is
  set; `losses` (classification, focal, dice, weighted, of two images, final layer), `matched`
  [B, T], and of each parameter's gradient `norm NAME` and `some NAME`: its L2 norm, and the values
  at `places(size)` of the flat array.
"""

import json
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "maskformer"
SIZES = ((64, 64), (64, 96), (96, 32))
TARGETS = ((0, 2, 2), (1, 0))  # classes of the segments of each of the two training images
TRAIN = (64, 96)
CLASSES, QUERIES = 3, 10


def weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """A tensor for each name, drawn by the name, so that neither norms nor biases are trivial."""
    tensors = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("num_batches_tracked"):
            tensors[name] = np.zeros(shape, np.int64)
        elif name == "criterion.empty_weight":
            tensors[name] = np.array([1.0] * CLASSES + [0.1], np.float32)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            tensors[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        elif len(shape) == 1:
            tensors[name] = (0.2 * rng.standard_normal(shape)).astype(np.float32)
        else:
            fan = 1 if "queries" in name else np.prod(shape[1:])
            gain = 2 if len(shape) == 4 else 1
            tensors[name] = (rng.standard_normal(shape) * (gain / fan) ** 0.5).astype(np.float32)
    return tensors


def image(seed: int, size: tuple[int, int]) -> np.ndarray:
    """u8 [H, W, 3]: coarse blocks of colour with some noise."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 200, (size[0] // 8, size[1] // 8, 3))
    return (blocks.repeat(8, 0).repeat(8, 1) + rng.integers(0, 56, (*size, 3))).astype(np.uint8)


def segments() -> np.ndarray:
    """i16 [2, H, W] of TRAIN: three and two segments; -1 where nothing is labelled."""
    found = np.full((2, *TRAIN), -1, np.int16)
    found[0, 5:30, 7:60] = 0
    found[0, 30:64, :41] = 1
    found[0, 31:50, 50:90] = 2
    found[1, :, :33] = 0
    found[1, 11:40, 40:96] = 1
    return found


def places(size: int) -> np.ndarray:
    """Which values of a flat array of this size are kept: at most 40, spread evenly."""
    return np.unique(np.linspace(0, size - 1, 40).astype(int))


def main():
    import tempfile

    import torch
    from safetensors import safe_open
    from transformers import (
        DetrConfig,
        MaskFormerConfig,
        MaskFormerForInstanceSegmentation,
        ResNetConfig,
    )
    from transformers.models.maskformer.image_processing_pil_maskformer import (
        MaskFormerImageProcessorPil,
    )

    def model(**decoder):
        stages = [f"stage{i}" for i in range(1, 5)]
        config = MaskFormerConfig(
            backbone_config=ResNetConfig(
                embedding_size=4,
                hidden_sizes=[16, 32, 64, 128],
                depths=[1, 2, 1, 1],
                out_features=stages,
            ),
            decoder_config=DetrConfig(
                d_model=8,
                decoder_layers=2,
                decoder_attention_heads=2,
                encoder_attention_heads=2,
                decoder_ffn_dim=12,
                num_queries=QUERIES,
                **decoder,
            ),
            fpn_feature_size=32,
            mask_feature_size=16,
            id2label={0: "road", 1: "sky", 2: "LABEL_2"},
        )
        return MaskFormerForInstanceSegmentation(config).eval()

    FOLDER.mkdir(parents=True, exist_ok=True)
    ours = model()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        ours.save_pretrained(scratch)
        processor = MaskFormerImageProcessorPil(do_resize=False, size_divisor=32, ignore_index=255)
        processor.save_pretrained(scratch)
        for name in ("config.json", "preprocessor_config.json"):
            (FOLDER / name).write_text((scratch / name).read_text())
        with safe_open(scratch / "model.safetensors", framework="numpy") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
        (FOLDER / "tensors.json").write_text(json.dumps(shapes, indent=0) + "\n")
        # through the library's own reader, which knows the names of its files
        from safetensors.numpy import save_file

        save_file(weights(shapes), scratch / "model.safetensors", metadata={"format": "pt"})
        ours = MaskFormerForInstanceSegmentation.from_pretrained(scratch).eval()

    def pixels(picture):
        return processor([picture], return_tensors="pt")["pixel_values"]

    found = {}
    with torch.no_grad():
        between = model(auxiliary_loss=True)
        between.load_state_dict(ours.state_dict())
        for seed, size in enumerate(SIZES):
            output = ours(pixels(image(seed, size)))
            found[f"logits_{size[0]}x{size[1]}"] = output.class_queries_logits[0].numpy()
            found[f"masks_{size[0]}x{size[1]}"] = output.masks_queries_logits[0].numpy()
        output = between(pixels(image(0, SIZES[0])))
        found["between_logits"] = output.class_queries_logits[0].numpy()
        found["between_masks"] = output.masks_queries_logits[0].numpy()

    labels = [torch.tensor(classes) for classes in TARGETS]
    masks = [
        torch.tensor(np.stack([part == i for i in range(len(classes))]).astype(np.float32))
        for part, classes in zip(segments(), TARGETS, strict=True)
    ]
    inputs = torch.cat([pixels(image(10 + i, TRAIN)) for i in range(2)])
    output = ours(inputs)
    predicted = output.masks_queries_logits, output.class_queries_logits
    losses = ours.criterion(*predicted, masks, labels)
    matched = np.full((2, 4), -1, np.int32)
    for i, (queries, targets) in enumerate(ours.matcher(*predicted, masks, labels)):
        matched[i, targets] = queries
    found["matched"] = matched
    weighted = [
        losses[name] * ours.weight_dict[name]
        for name in ("loss_cross_entropy", "loss_mask", "loss_dice")
    ]
    found["losses"] = np.array([loss.item() for loss in weighted])
    ours.zero_grad()
    sum(weighted).backward()
    new = {"o_proj": "out_proj", "mlp.fc": "fc"}  # as the file says
    for name, parameter in ours.named_parameters():
        for theirs, saved in new.items():
            name = name.replace(theirs, saved)
        gradient = parameter.grad.numpy().ravel()
        found[f"norm {name}"] = np.linalg.norm(gradient.astype(np.float64))
        found[f"some {name}"] = gradient[places(gradient.size)]
    np.savez_compressed(FOLDER / "goldens.npz", **found)
    print({key: value for key, value in found.items() if key in ("losses", "matched")})


if __name__ == "__main__":
    main()
