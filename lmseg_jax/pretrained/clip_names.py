"""Names of a CLIP with a ResNet, as tables to the paths of our modules.

OpenAI's names (also open_clip's) of both towers, and timm's of the image tower alone.
Source: reference sections 1.5 and 1.6.
"""

from lmseg_jax.pretrained import mapping
from lmseg_jax.pretrained.mapping import Rule


def norm(source: str, path: str) -> list[Rule]:
    """Rules of one batch norm."""
    return [
        Rule(rf"{source}\.weight", rf"{path}/scale"),
        Rule(rf"{source}\.bias", rf"{path}/bias"),
        Rule(rf"{source}\.running_mean", rf"{path}/mean"),
        Rule(rf"{source}\.running_var", rf"{path}/var"),
    ]


def block(
    source: str,
    path: str,
    *,
    convolutions: tuple[str, str, str],
    norms: tuple[str, str, str],
    shortcut: tuple[str, str],
) -> list[Rule]:
    """Rules of one bottleneck: its three convolutions, their norms, the shortcut and its norm."""
    rules = []
    layouts = (mapping.pointwise, mapping.convolution, mapping.pointwise)
    for i, layout in enumerate(layouts):
        kernel = rf"{path}/conv{i + 1}/kernel"
        rules.append(Rule(rf"{source}\.{convolutions[i]}\.weight", kernel, layout))
        rules += norm(rf"{source}\.{norms[i]}", rf"{path}/norm{i + 1}")
    kernel = rf"{path}/shortcut/kernel"
    rules.append(Rule(rf"{source}\.{shortcut[0]}\.weight", kernel, mapping.pointwise))
    return rules + norm(rf"{source}\.{shortcut[1]}", rf"{path}/shortcut_norm")


def torch_block(source: str, path: str) -> list[Rule]:
    """`block` under the names that OpenAI and torchvision share."""
    return block(
        source,
        path,
        convolutions=("conv1", "conv2", "conv3"),
        norms=("bn1", "bn2", "bn3"),
        shortcut=(r"downsample\.0", r"downsample\.1"),
    )


def _linear(source: str, path: str) -> list[Rule]:
    return [
        Rule(rf"{source}\.weight", rf"{path}/kernel", mapping.linear),
        Rule(rf"{source}\.bias", rf"{path}/bias"),
    ]


def _layer_norm(source: str, path: str) -> list[Rule]:
    return [Rule(rf"{source}\.weight", rf"{path}/scale"), Rule(rf"{source}\.bias", rf"{path}/bias")]


def _image_rules() -> list[Rule]:
    rules = []
    for i in range(3):
        kernel = f"stem/{i}/conv/kernel"
        rules.append(Rule(rf"visual\.conv{i + 1}\.weight", kernel, mapping.convolution))
        rules += norm(rf"visual\.bn{i + 1}", f"stem/{i}/norm")
    for s in range(4):
        rules += torch_block(rf"visual\.layer{s + 1}\.(\d+)", rf"stages/{s}/\1")
    return rules


def _timm_rules() -> list[Rule]:
    rules = []
    for i in range(3):
        source, path = rf"stem\.conv{i + 1}", f"stem/{i}"
        rules.append(Rule(rf"{source}\.conv\.weight", f"{path}/conv/kernel", mapping.convolution))
        rules += norm(rf"{source}\.bn", f"{path}/norm")
    parts = ("conv1_1x1", "conv2_kxk", "conv3_1x1")
    for s in range(4):
        rules += block(
            rf"stages\.{s}\.(\d+)",
            rf"stages/{s}/\1",
            convolutions=tuple(rf"{part}\.conv" for part in parts),
            norms=tuple(rf"{part}\.bn" for part in parts),
            shortcut=(r"shortcut\.conv\.conv", r"shortcut\.conv\.bn"),
        )
    return rules


def _text_rules() -> list[Rule]:
    source, path = r"transformer\.resblocks\.(\d+)", r"blocks/\1"
    return [
        Rule(r"token_embedding\.weight", "tokens"),
        Rule(r"positional_embedding", "positions"),
        Rule(r"text_projection", "projection"),
        *_layer_norm(r"ln_final", "norm"),
        *_layer_norm(rf"{source}\.ln_1", rf"{path}/norm1"),
        *_layer_norm(rf"{source}\.ln_2", rf"{path}/norm2"),
        Rule(rf"{source}\.attn\.in_proj_weight", rf"{path}/qkv/kernel", mapping.linear),
        Rule(rf"{source}\.attn\.in_proj_bias", rf"{path}/qkv/bias"),
        *_linear(rf"{source}\.attn\.out_proj", rf"{path}/project"),
        *_linear(rf"{source}\.mlp\.c_fc", rf"{path}/expand"),
        *_linear(rf"{source}\.mlp\.c_proj", rf"{path}/contract"),
    ]


def _pool_rules() -> list[Rule]:
    ours = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "c_proj": "project"}
    rules = [Rule(r"visual\.attnpool\.positional_embedding", "positions")]
    for theirs, name in ours.items():
        rules += _linear(rf"visual\.attnpool\.{theirs}", name)
    return rules


IMAGE, TIMM, POOL, TEXT = _image_rules(), _timm_rules(), _pool_rules(), _text_rules()
VISUAL = r"visual\..*"
TEXTUAL = r"(token_embedding|ln_final|transformer)\..*|positional_embedding|text_projection"
COUNTERS = {r".*\.num_batches_tracked": "counters of batch norms, which nothing reads"}
NOT_READ = COUNTERS | {
    r"visual\.attnpool\..*": "CLIP's attention pool: a segmentation model reads feature maps",
    r"logit_scale": "CLIP's own temperature: here it is model.temperature",
    r"input_resolution|context_length|vocab_size": "sizes, which follow from the shapes",
}
TIMM_NOT_READ = COUNTERS | {
    r"head\..*": "CLIP's attention pool: a segmentation model reads feature maps"
}
