"""Names of Hugging Face's MaskFormer with a ResNet, as a table to the paths of our modules.

Files have the decoder's names of before transformers 5 ("out_proj", "fc1"); the library itself
calls them "o_proj" and "mlp.fc1" since then. Both are read.
"""

from collections.abc import Callable

from lmseg_jax.pretrained import mapping
from lmseg_jax.pretrained.mapping import Rule

AFFINE = {"weight": "scale", "bias": "bias"}
STATISTICS = {"running_mean": "mean", "running_var": "var"}


def _norm(source: str, path: str, *, statistics: bool = False) -> list[Rule]:
    names = AFFINE | STATISTICS if statistics else AFFINE
    return [Rule(rf"{source}\.{theirs}", rf"{path}/{ours}") for theirs, ours in names.items()]


def _layer(source: str, path: str, layout: Callable = mapping.linear) -> list[Rule]:
    return [
        Rule(rf"{source}\.weight", rf"{path}/kernel", layout),
        Rule(rf"{source}\.bias", rf"{path}/bias"),
    ]


def _backbone() -> list[Rule]:
    def normed(source, path, number, layout):
        return [
            Rule(rf"{source}\.convolution\.weight", rf"{path}/conv{number}/kernel", layout),
            *_norm(rf"{source}\.normalization", rf"{path}/norm{number}", statistics=True),
        ]

    encoder = r"model\.pixel_level_module\.encoder"
    rules = normed(rf"{encoder}\.embedder\.embedder", "backbone/stem", "", mapping.convolution)
    for s in range(4):
        block = rf"{encoder}\.encoder\.stages\.{s}\.layers\.(\d+)"
        ours = rf"backbone/stages/{s}/\1"
        for i, layout in enumerate((mapping.pointwise, mapping.convolution, mapping.pointwise)):
            rules += normed(rf"{block}\.layer\.{i}", ours, i + 1, layout)
        shortcut = rf"{block}\.shortcut"
        kernel = rf"{ours}/shortcut/kernel"
        rules.append(Rule(rf"{shortcut}\.convolution\.weight", kernel, mapping.pointwise))
        rules += _norm(rf"{shortcut}\.normalization", rf"{ours}/shortcut_norm", statistics=True)
    return rules


def _pixel_decoder() -> list[Rule]:
    decoder, ours = r"model\.pixel_level_module\.decoder", "pixel_decoder"
    convolution = mapping.convolution
    rules = [
        *_layer(rf"{decoder}\.fpn\.stem\.0", f"{ours}/output/3", convolution),
        *_norm(rf"{decoder}\.fpn\.stem\.1", f"{ours}/output_norm/3"),
        *_layer(rf"{decoder}\.mask_projection", f"{ours}/mask_features", convolution),
    ]
    for i in range(3):  # theirs begins with res4, ours with res2
        layer, level = rf"{decoder}\.fpn\.layers\.{i}", 2 - i
        rules += _layer(rf"{layer}\.proj\.0", f"{ours}/lateral/{level}", mapping.pointwise)
        rules += _norm(rf"{layer}\.proj\.1", f"{ours}/lateral_norm/{level}")
        rules += _layer(rf"{layer}\.block\.0", f"{ours}/output/{level}", convolution)
        rules += _norm(rf"{layer}\.block\.1", f"{ours}/output_norm/{level}")
    return rules


def _decoder() -> list[Rule]:
    module = r"model\.transformer_module"
    layer, ours = rf"{module}\.decoder\.layers\.(\d+)", r"decoder/layers/\1"
    rules = [
        Rule(rf"{module}\.queries_embedder\.weight", "decoder/position"),
        *_layer(rf"{module}\.input_projection", "decoder/project", mapping.pointwise),
        *_norm(rf"{module}\.decoder\.layernorm", "decoder/norm"),
        *_norm(rf"{layer}\.final_layer_norm", rf"{ours}/feedforward_norm"),
    ]
    for i, attention in enumerate(("self_attn", "encoder_attn")):
        parts = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
        parts |= {"out_proj": "out", "o_proj": "out"}
        for theirs, name in parts.items():
            rules += _layer(rf"{layer}\.{attention}\.{theirs}", rf"{ours}/attentions/{i}/{name}")
        rules += _norm(rf"{layer}\.{attention}_layer_norm", rf"{ours}/norms/{i}")
    for theirs, name in {"fc1": "expand", "fc2": "contract"}.items():
        rules += _layer(rf"{layer}\.{theirs}", rf"{ours}/{name}")
        rules += _layer(rf"{layer}\.mlp\.{theirs}", rf"{ours}/{name}")
    return rules


RULES = [
    *_backbone(),
    *_pixel_decoder(),
    *_decoder(),
    *_layer("class_predictor", "head/classes"),
    *_layer(r"mask_embedder\.(\d+)\.0", r"mask_head/layers/\1"),
]
NOT_READ = (r".*\.num_batches_tracked", r"criterion\.empty_weight")
