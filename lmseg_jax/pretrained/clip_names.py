"""OpenAI's names of a CLIP with a ResNet, as tables to the paths of our modules.

Source: reference sections 1.5 and 1.6.
"""

from lmseg_jax.pretrained import mapping
from lmseg_jax.pretrained.mapping import Rule


def _norm(source: str, path: str) -> list[Rule]:
    return [
        Rule(rf"{source}\.weight", rf"{path}/scale"),
        Rule(rf"{source}\.bias", rf"{path}/bias"),
        Rule(rf"{source}\.running_mean", rf"{path}/mean"),
        Rule(rf"{source}\.running_var", rf"{path}/var"),
    ]


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
        rules += _norm(rf"visual\.bn{i + 1}", f"stem/{i}/norm")
    for s in range(4):
        block, ours = rf"visual\.layer{s + 1}\.(\d+)", rf"stages/{s}/\1"
        for i, layout in ((1, mapping.pointwise), (2, mapping.convolution), (3, mapping.pointwise)):
            rules.append(Rule(rf"{block}\.conv{i}\.weight", rf"{ours}/conv{i}/kernel", layout))
            rules += _norm(rf"{block}\.bn{i}", rf"{ours}/norm{i}")
        shortcut = rf"{ours}/shortcut/kernel"
        rules.append(Rule(rf"{block}\.downsample\.0\.weight", shortcut, mapping.pointwise))
        rules += _norm(rf"{block}\.downsample\.1", rf"{ours}/shortcut_norm")
    return rules


def _text_rules() -> list[Rule]:
    block, ours = r"transformer\.resblocks\.(\d+)", r"blocks/\1"
    return [
        Rule(r"token_embedding\.weight", "tokens"),
        Rule(r"positional_embedding", "positions"),
        Rule(r"text_projection", "projection"),
        *_layer_norm(r"ln_final", "norm"),
        *_layer_norm(rf"{block}\.ln_1", rf"{ours}/norm1"),
        *_layer_norm(rf"{block}\.ln_2", rf"{ours}/norm2"),
        Rule(rf"{block}\.attn\.in_proj_weight", rf"{ours}/qkv/kernel", mapping.linear),
        Rule(rf"{block}\.attn\.in_proj_bias", rf"{ours}/qkv/bias"),
        *_linear(rf"{block}\.attn\.out_proj", rf"{ours}/project"),
        *_linear(rf"{block}\.mlp\.c_fc", rf"{ours}/expand"),
        *_linear(rf"{block}\.mlp\.c_proj", rf"{ours}/contract"),
    ]


def _pool_rules() -> list[Rule]:
    ours = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "c_proj": "project"}
    rules = [Rule(r"visual\.attnpool\.positional_embedding", "positions")]
    for theirs, name in ours.items():
        rules += _linear(rf"visual\.attnpool\.{theirs}", name)
    return rules


IMAGE, POOL, TEXT = _image_rules(), _pool_rules(), _text_rules()
ATTENTION_POOL = r"visual\.attnpool\..*"
VISUAL = r"visual\..*"
NOT_VISUAL = r"(?!visual\.).*"
NEVER = (r".*\.num_batches_tracked", r"input_resolution", r"context_length", r"vocab_size")
