"""Every format of pretrained towers: found by its names, read strictly, told apart."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from lmseg_jax.errors import UserError
from lmseg_jax.models.resnet import ClipResNet
from lmseg_jax.pretrained import sources
from lmseg_jax.pretrained import weights as pretrained

CLIP = Path(__file__).parents[1] / "fixtures" / "clip_rn_tiny.safetensors"

# OpenAI's part of a name -> timm's, reference section 1.5
TIMM = {
    "visual.conv1.weight": "stem.conv1.conv.weight",
    "visual.conv2.weight": "stem.conv2.conv.weight",
    "visual.conv3.weight": "stem.conv3.conv.weight",
    "visual.bn": "stem.conv",
    "visual.layer": "stages.",
    ".conv1.weight": ".conv1_1x1.conv.weight",
    ".conv2.weight": ".conv2_kxk.conv.weight",
    ".conv3.weight": ".conv3_1x1.conv.weight",
    ".bn1.": ".conv1_1x1.bn.",
    ".bn2.": ".conv2_kxk.bn.",
    ".bn3.": ".conv3_1x1.bn.",
    ".downsample.0.": ".shortcut.conv.conv.",
    ".downsample.1.": ".shortcut.conv.bn.",
}


@pytest.fixture(scope="module")
def weights():
    return pretrained.read(str(CLIP))


@pytest.fixture(scope="module")
def tensors():
    return load_file(CLIP)


def shapes(**sizes):
    sizes = {"depths": (2, 1, 2, 1), "width": 16} | sizes
    model = nnx.eval_shape(lambda: ClipResNet(**sizes, rngs=nnx.Rngs(0)))
    return nnx.to_pure_dict(nnx.state(model))


def saved(folder, tensors):
    save_file(tensors, folder / "x.safetensors", metadata={"token_embedding_seed": "0"})
    return str(folder / "x.safetensors")


def timm_name(name):
    for i in range(4):  # timm counts stages from 0
        name = name.replace(f"visual.layer{i + 1}.", f"stages.{i}.")
    if name.startswith("visual.bn"):
        return f"stem.conv{name[9]}.bn{name[10:]}"
    if name in TIMM:
        return TIMM[name]
    for theirs, ours in TIMM.items():
        if theirs.startswith("."):
            name = name.replace(theirs, ours)
    return name.replace("visual.attnpool.positional_embedding", "head.pos_embed")


def test_sizes_follow_from_the_shapes(weights):
    assert weights.format == "open_clip"
    assert weights.backbone == "clip_resnet"
    assert weights.image_config == {"depths": (2, 1, 2, 1), "width": 16}
    assert weights.text_config == {"width": 16, "layers": 3, "heads": 2, "embedding": 32}


def test_half_precision_becomes_float32(tmp_path, tensors):
    halved = {n: t.astype(np.float16) for n, t in tensors.items() if n.startswith("visual.")}
    half = pretrained.read(saved(tmp_path, halved))
    tree = pretrained.fill_image(half, shapes())
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(
        tree["stem"][0]["norm"]["mean"], halved["visual.bn1.running_mean"]
    )


def test_a_config_of_another_size_is_told_key_and_both_values(weights):
    with pytest.raises(UserError, match=r"model\.resnet\.width is 64, the weights have 16"):
        pretrained.check_image(weights, backbone="clip_resnet", depths=(2, 1, 2, 1), width=64)
    with pytest.raises(UserError, match=r"model\.text\.heads is 8, the weights have 2"):
        pretrained.check_text(weights, width=16, layers=3, heads=8, embedding=32)


def test_weights_that_fit_pass_the_check(weights):
    pretrained.check_image(weights, backbone="clip_resnet", depths=[2, 1, 2, 1], width=16)
    pretrained.check_text(weights, width=16, layers=3, heads=2, embedding=32)


def test_another_backbone_is_told_which_one_fits(weights):
    with pytest.raises(UserError, match=r"for model\.backbone = 'clip_resnet', .* 'resnet'; set"):
        pretrained.check_image(weights, backbone="resnet", depths=(2, 1, 2, 1), width=16)


def test_unused_and_unfilled_names_are_all_reported_at_once(weights):
    with pytest.raises(UserError) as error:
        pretrained.fill_image(weights, shapes(depths=(1, 2, 2, 1)))
    assert "visual.layer1.1.conv3.weight" in str(error.value)  # theirs only
    assert "stages/1/1/norm2/var" in str(error.value)  # ours only


def test_unequal_shapes_are_reported_with_both(weights):
    with pytest.raises(
        UserError, match=r"visual\.conv1\.weight \(3, 3, 3, 8\) for .*\(3, 3, 3, 4\)"
    ):
        pretrained.fill_image(weights, shapes(width=8))


def test_group_norms_cannot_be_filled(weights):
    with pytest.raises(UserError, match=r"without a place.*visual\.bn1\.running_mean"):
        pretrained.fill_image(weights, shapes(norm="group"))


def test_a_name_that_belongs_to_no_tower_is_reported(tmp_path, tensors):
    read = pretrained.read(saved(tmp_path, tensors | {"extra.weight": np.zeros(3, np.float32)}))
    with pytest.raises(UserError, match=r"without a place in the model: extra\.weight"):
        pretrained.fill_image(read, shapes())


@pytest.mark.parametrize(
    ("value", "found"), [(np.zeros(8, np.int32), "int32"), (np.full(8, np.nan, np.float32), "NaN")]
)
def test_integers_and_nan_are_no_weights(tmp_path, tensors, value, found):
    read = pretrained.read(saved(tmp_path, tensors | {"visual.bn1.bias": value}))
    with pytest.raises(
        UserError, match=rf"no finite float16 or float32: visual\.bn1\.bias.*{found}"
    ):
        pretrained.fill_image(read, shapes())


def test_timms_file_fills_the_same_tower(tmp_path, weights, tensors):
    renamed = {timm_name(n): t for n, t in tensors.items() if n.startswith("visual.")}
    renamed = {n.replace("visual.attnpool", "head"): t for n, t in renamed.items()}
    counter = {"stem.conv1.bn.num_batches_tracked": np.int64([7])}
    read = pretrained.read(saved(tmp_path, renamed | counter))
    assert read.format == "timm_clip"
    assert (read.image_config, read.text_config) == (weights.image_config, {})
    found, expected = (pretrained.fill_image(w, shapes()) for w in (read, weights))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    with pytest.raises(UserError, match="have no text tower; they are timm's image tower"):
        pretrained.check_text(read, width=16, layers=3, heads=2, embedding=32)


def test_torchvisions_resnet_is_read_by_hand(tmp_path):
    rng = np.random.default_rng(0)
    foreign, tree = {}, {"stem": {}, "stages": {}}

    def norm(source, channels):
        values = rng.normal(size=(4, channels)).astype(np.float32)
        theirs = ("weight", "bias", "running_mean", "running_var")
        foreign.update({f"{source}.{k}": v for k, v in zip(theirs, values, strict=True)})
        foreign[f"{source}.num_batches_tracked"] = np.int64([3])
        return dict(zip(("scale", "bias", "mean", "var"), values, strict=True))

    def kernel(source, *shape):
        foreign[f"{source}.weight"] = rng.normal(size=shape).astype(np.float32)
        return foreign[f"{source}.weight"]

    stem = kernel("conv1", 4, 3, 7, 7)
    tree["stem"] = {"conv": {"kernel": np.moveaxis(stem, (0, 1), (3, 2))}, "norm": norm("bn1", 4)}
    inputs = 4
    for stage in range(4):
        planes, name = 4 * 2**stage, f"layer{stage + 1}.0"
        block = {}
        for i, (a, b, k) in enumerate(
            [(inputs, planes, 1), (planes, planes, 3), (planes, 4 * planes, 1)], start=1
        ):
            theirs = kernel(f"{name}.conv{i}", b, a, k, k)
            ours = theirs[:, :, 0, 0].T if k == 1 else np.moveaxis(theirs, (0, 1), (3, 2))
            block[f"conv{i}"] = {"kernel": ours}
            block[f"norm{i}"] = norm(f"{name}.bn{i}", b)
        shortcut = kernel(f"{name}.downsample.0", 4 * planes, inputs, 1, 1)
        block["shortcut"] = {"kernel": shortcut[:, :, 0, 0].T}
        block["shortcut_norm"] = norm(f"{name}.downsample.1", 4 * planes)
        tree["stages"][stage] = {0: block}
        inputs = 4 * planes
    foreign |= {"fc.weight": np.zeros((5, inputs), np.float32), "fc.bias": np.zeros(5, np.float32)}
    read = pretrained.read(saved(tmp_path, foreign))
    assert (read.backbone, read.image_config["depths"]) == ("resnet", (1, 1, 1, 1))
    assert read.image_config["width"] == 4
    jax.tree.map(np.testing.assert_array_equal, pretrained.fill_image(read, tree), tree)
    reasons = pretrained.left_out(read)
    assert reasons["the classifier of ImageNet's 1000 classes"] == ["fc.bias", "fc.weight"]


def test_a_file_of_another_format_than_asked_for_says_which_it_is():
    with pytest.raises(UserError, match="names are those of open_clip, not of torchvision"):
        pretrained.read(str(CLIP), form="torchvision")


def test_a_file_of_unknown_names_is_refused(tmp_path):
    path = saved(tmp_path, {"layer.weight": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match=r"of no known kind \(it starts with layer\.weight\)"):
        pretrained.read(path)


def test_an_image_tower_that_is_no_resnet_is_refused(tmp_path, tensors):
    other = {n: t for n, t in tensors.items() if not n.startswith("visual.")}
    other |= {"visual.class_embedding": np.zeros(8, np.float32)}
    with pytest.raises(UserError, match="no ResNet that is read here"):
        pretrained.read(saved(tmp_path, other))


def test_a_missing_file_names_what_the_key_takes():
    with pytest.raises(UserError, match=r"no such file; known names are worlds-clip, openai/rn50"):
        pretrained.read("nowhere.safetensors")


@pytest.mark.parametrize("name", ["RN50.pt", "resnet50.pth", "model.PKL", "pytorch_model.bin"])
def test_pickles_are_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit'\ntR.")
    with pytest.raises(UserError, match="which can run code .* one line for it in docs/weights.md"):
        pretrained.read(str(tmp_path / name))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty Hugging Face cache, and a hub that cannot be reached."""

    def fail(repository, file):
        raise ConnectionError(f"no route to {repository}\nand more")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    return tmp_path


def cached(cache, repository, file):
    """A place in the cache, laid out as the hub's client does."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123abc")
    (folder / "snapshots" / "0123abc").mkdir(parents=True)
    return folder / "snapshots" / "0123abc" / file


@pytest.mark.parametrize("name", ["openai/rn50", "openai/rn101"])
def test_names_are_found_in_the_cache_of_the_hub(cache, name):
    repository = f"timm/resnet{name[9:]}_clip.openai"
    cached(cache, repository, "open_clip_model.safetensors").symlink_to(CLIP)
    read = pretrained.read(name)
    assert (read.name, read.image_config["width"]) == (name, 16)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("timm/resnet50_clip.openai", "timm/resnet50_clip.openai"),
        ("torchvision/resnet50", "timm/resnet50.tv_in1k"),
    ],
)
def test_image_towers_lie_in_model_safetensors(cache, name, where):
    path = cached(cache, where, "model.safetensors")
    path.write_bytes(b"x")
    assert sources.find(name) == path


def test_what_is_not_in_the_cache_is_asked_of_the_hub(cache, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *asked: "/".join(asked))
    found = sources.find("openai/rn50")
    assert str(found) == "timm/resnet50_clip.openai/open_clip_model.safetensors"
    assert "from the Hugging Face hub" in capsys.readouterr().out


def test_a_hub_out_of_reach_is_one_readable_error(cache):
    with pytest.raises(UserError) as error:
        pretrained.read("openai/rn50")
    text = str(error.value)
    assert "nor could it be downloaded (ConnectionError: no route to timm/resnet50_clip.op" in text
    assert "hf download timm/resnet50_clip.openai open_clip_model.safetensors" in text
    assert "\n" not in text
