"""A Hugging Face MaskFormer here: the library's logits, losses, matches and gradients."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from configs import base
from lmseg_jax import losses, state
from lmseg_jax.errors import UserError
from lmseg_jax.pretrained import mapping
from lmseg_jax.pretrained.maskformer import read_maskformer
from lmseg_jax.pretrained.maskformer_names import NOT_READ, RULES
from tests.goldens.maskformer import FOLDER, SIZES, TARGETS, TRAIN, image, places, segments, weights

GOLDENS = np.load(FOLDER / "goldens.npz")
SHAPES = json.loads((FOLDER / "tensors.json").read_text())


def write(folder, *, config=None, processor=None, tensors=None):
    """A folder as the library writes it, with changes."""
    folder.mkdir(exist_ok=True)
    for name, change in {"config.json": config, "preprocessor_config.json": processor}.items():
        contents = json.loads((FOLDER / name).read_text())
        for key, value in (change or {}).items():
            *parents, last = key.split(".")
            place = contents
            for parent in parents:
                place = place[parent]
            place[last] = value
        (folder / name).write_text(json.dumps(contents))
    safetensors.numpy.save_file(
        weights(SHAPES) if tensors is None else tensors, folder / "model.safetensors"
    )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("maskformer"))


@pytest.fixture(scope="module")
def read(folder):
    return read_maskformer(folder)


def words(names):
    count = len(names) + 1
    return {"index": np.arange(count)[None], "valid": np.ones((1, count), bool)}


def text(names, images):
    return {"embeddings": np.zeros((1, len(names) + 1, 0)), "valid": words(names)["valid"]}, (
        np.zeros(images, np.int32)
    )


def predict(read, pictures, **changes):
    config, params, frozen, names = read
    graphdef = state.graph(config, words(names))

    @jax.jit
    def run(params, frozen, pictures):
        model = state.merge(graphdef, params, frozen)
        valid = jnp.ones(pictures.shape[:3], bool)
        asked, dataset = text(names, len(pictures))
        return model(pictures, asked, dataset, valid=valid, **changes)

    return run(params, frozen, pictures)


def check_close(found, expected, *, within, addend=0.0):
    """Largest difference over the largest expected value."""
    assert np.abs(np.asarray(found) - expected).max() <= within * np.abs(expected).max() + addend


@pytest.mark.parametrize("number", range(3))
def test_logits_are_the_librarys_at_three_sizes(read, number):
    size = SIZES[number]
    found = predict(read, image(number, size)[None], last=True)
    check_close(found["logits"][0, 0], GOLDENS[f"logits_{size[0]}x{size[1]}"], within=3e-5)
    check_close(found["masks"][0, 0], GOLDENS[f"masks_{size[0]}x{size[1]}"], within=3e-5)


def test_a_decoder_that_norms_between_its_layers_is_read_as_one(tmp_path):
    other = read_maskformer(write(tmp_path, config={"decoder_config.auxiliary_loss": True}))
    assert other[0].decoder.norm_between
    found = predict(other, image(0, SIZES[0])[None], last=True)
    plain = GOLDENS[f"logits_{SIZES[0][0]}x{SIZES[0][1]}"]
    assert np.abs(GOLDENS["between_logits"] - plain).max() > 1e-2
    check_close(found["logits"][0, 0], GOLDENS["between_logits"], within=3e-5)
    check_close(found["masks"][0, 0], GOLDENS["between_masks"], within=3e-5)


def test_config_and_names_are_the_files(read):
    config, params, frozen, names = read
    assert names == ["road", "sky", "LABEL_2"]
    assert (config.head, config.backbone, config.pixels) == ("linear", "resnet", "imagenet")
    assert (config.decoder.order, config.decoder.padding) == ("visual", "seen")
    assert config.resnet.norm == "frozen" and tuple(config.resnet.depths) == (1, 2, 1, 1)
    assert (config.queries, config.width, config.pixel_decoder.mask_width) == (10, 8, 16)
    assert not {"text_encoder", "prompt", "adapter"} & {*params, *frozen}


@pytest.fixture(scope="module")
def trained(read):
    """Weighted losses, matches and gradients of the final layer, norms' scale and bias included."""
    config, params, frozen, names = read
    config = config.copy_and_resolve_references()
    config.resnet.affine = True  # torch gives the frozen norms' scale and bias gradients
    joined = state.join(params, frozen)
    shapes = jax.eval_shape(lambda: state.weights(config, 0, vocabulary=words(names)))
    params, frozen = state.split_like(shapes, joined)
    graphdef = state.graph(config, words(names))
    run = base.get_config()
    run.loss.unlabelled, run.loss.resolution = "negative", "full"
    run.matcher.where = "device"
    classes = np.full((2, 4), -1, np.int32)
    for row, found in zip(classes, TARGETS, strict=True):
        row[: len(found)] = found
    bucket = {
        "image": np.stack([image(10 + i, TRAIN) for i in range(2)]),
        "segments": segments(),
        "classes": classes,
        "dataset": np.zeros(2, np.int32),
    }

    @jax.jit
    def compute(params):
        def loss(params):
            model = state.merge(graphdef, params, frozen)
            asked, dataset = text(names, 2)
            seen = jnp.ones(bucket["segments"].shape, bool)
            predictions = model(bucket["image"], asked, dataset, valid=seen, last=True)
            totals = losses.denominators(classes, queries=10, no_object=run.loss.no_object)
            total, parts = losses.total_loss(
                predictions,
                bucket,
                totals,
                valid=asked["valid"],
                loss=run.loss,
                matching=run.matcher,
            )
            return total, (parts, predictions)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, (parts, predictions)), gradients = compute(params)
    targets = losses.targets_of(bucket, unlabelled="negative")
    cost = losses.matching_cost(
        predictions["logits"][0],
        predictions["masks"][0],
        targets,
        weights={"classification": 1.0, "focal": 20.0, "dice": 1.0},
    )
    matched = losses.matcher.assign(
        cost[None], np.array([3, 2], np.int32), where="host", mesh=None
    )[0]
    return parts, np.where(classes >= 0, matched, -1), gradients


def test_losses_are_the_librarys(trained):
    found = [float(trained[0][key]) for key in ("classification", "focal", "dice")]
    np.testing.assert_allclose(found, GOLDENS["losses"], rtol=1e-5)


def test_matched_queries_are_the_librarys(trained):
    np.testing.assert_array_equal(trained[1], GOLDENS["matched"])


def test_gradients_are_the_librarys(trained):
    found = dict(mapping.paths(trained[2]))
    checked = set()
    for source, shape in SHAPES.items():
        if f"norm {source}" not in GOLDENS:
            continue  # running statistics
        rule = next(rule for rule in RULES if re.fullmatch(rule.source, source))
        path = re.fullmatch(rule.source, source).expand(rule.path)
        ours = np.zeros(np.prod(shape))
        order = rule.layout(np.arange(ours.size).reshape(shape))  # where each of ours lies in torch
        ours[order.ravel()] = np.asarray(found[path], np.float64).ravel()
        norm, some = GOLDENS[f"norm {source}"], GOLDENS[f"some {source}"]
        # Gradients of the keys' biases, and of what the first layer compares before queries
        # differ, are zero; what both sides round to is below the addend.
        assert abs(np.linalg.norm(ours) - norm) <= 2e-4 * norm + 1e-7, source
        check_close(ours[places(ours.size)], some, within=2e-4, addend=1e-7)
        checked.add(path)
    assert checked == set(found)


def test_auxiliary_outputs_follow_maskformer(read):
    """The heads get the normed output of every layer, the next layer the plain one."""
    config, params, frozen, names = read
    graphdef = state.graph(config, words(names))
    memory = np.random.default_rng(0).normal(size=(1, 2, 3, 128)).astype(np.float32)

    @jax.jit
    def run(params, frozen, memory):
        nothing = {"text": jnp.zeros((1, 4, 0)), "text_valid": jnp.ones((1, 4), bool)}
        seen = jnp.ones((1, 2, 3), bool)
        return state.merge(graphdef, params, frozen).decoder(memory, seen, **nothing)

    found = run(params, frozen, memory)

    tree = {path: np.asarray(leaf, np.float64) for path, leaf in mapping.paths(params["decoder"])}

    def linear(x, path):
        return x @ tree[f"{path}/kernel"] + tree[f"{path}/bias"]

    def norm(x, path):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * tree[f"{path}/scale"] + tree[f"{path}/bias"]

    def attend(queries, keys, values, path):
        q, k, v = (
            linear(x, f"{path}/{name}")
            for x, name in ((queries, "query"), (keys, "key"), (values, "value"))
        )
        mixed = []
        for head in (slice(0, 4), slice(4, 8)):
            scores = q[:, head] @ k[:, head].T / 2  # square root of 4 channels a head
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(scores / scores.sum(-1, keepdims=True) @ v[:, head])
        return linear(np.concatenate(mixed, -1), f"{path}/out")

    values = linear(memory.reshape(6, 128).astype(np.float64), "project")
    # 2 rows and 3 columns from 1, as shares of 2 pi; two frequencies an axis, rows first
    rows, columns = np.repeat([1, 2], 3) / (2 + 1e-6), np.tile([1, 2, 3], 2) / (3 + 1e-6)
    angles = [2 * np.pi * axis / scale for axis in (rows, columns) for scale in (1, 100)]
    waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    keys = values + np.stack(waves, -1)
    position = tree["position"]
    x = np.zeros_like(position)
    for layer in range(2):
        path = f"layers/{layer}"
        q = x + position
        x = norm(x + attend(q, q, x, f"{path}/attentions/0"), f"{path}/norms/0")
        x = norm(x + attend(x + position, keys, values, f"{path}/attentions/1"), f"{path}/norms/1")
        hidden = np.maximum(linear(x, f"{path}/expand"), 0)
        x = norm(x + linear(hidden, f"{path}/contract"), f"{path}/feedforward_norm")
        np.testing.assert_allclose(found[layer, 0], norm(x, "norm"), atol=1e-4)


def test_half_precision_and_the_librarys_newer_names_are_read(tmp_path, read):
    tensors = {}
    for name, tensor in weights(SHAPES).items():
        name = name.replace("out_proj", "o_proj").replace(".fc", ".mlp.fc")
        tensors[name] = tensor.astype(np.float16) if tensor.dtype == np.float32 else tensor
    _, params, _, _ = read_maskformer(write(tmp_path, tensors=tensors))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=4e-3), params, read[1])


def test_every_tensor_that_does_not_fit_is_named_at_once(tmp_path):
    tensors = weights(SHAPES)
    tensors["extra.weight"] = np.zeros(3, np.float32)
    del tensors["class_predictor.bias"]
    tensors["mask_embedder.0.0.bias"] = np.zeros(9, np.float32)
    with pytest.raises(UserError) as caught:
        read_maskformer(write(tmp_path, tensors=tensors))
    for part in ("extra.weight", "head/classes/bias", "mask_head/layers/0/bias", "(9,)"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"backbone_config.model_type": "swin"}, "model_type is 'swin', only 'resnet' is read"),
        ({"backbone_config.model_type": "timm_backbone"}, "backbones of timm"),
        ({"backbone_config": None, "use_timm_backbone": True}, "backbones of timm"),
        ({"backbone_config.layer_type": "basic"}, "only 'bottleneck' is read"),
        ({"backbone_config.downsample_in_bottleneck": True}, "downsample_in_bottleneck is True"),
        ({"backbone_config.hidden_sizes": [16, 32, 64, 100]}, "times embedding_size = 4"),
        (
            {"backbone_config.out_features": ["stage4"], "backbone_config.out_indices": [4]},
            "all fo",
        ),
        ({"decoder_config.activation_function": "gelu"}, "only 'relu' is read"),
        ({"decoder_config.num_queries": "ten"}, "num_queries is 'ten', not like 100"),
        ({"decoder_config.decoder_attention_heads": 3}, "d_model is 8, no multiple of 3 heads"),
        ({"fpn_feature_size": 48}, "48 channels do not divide into 32 groups"),
        ({"id2label": {"1": "a", "2": "b"}}, "does not number the classes"),
    ],
)
def test_another_architecture_is_refused_by_name(tmp_path, config, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_maskformer(write(tmp_path, config=config))
    assert "config.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"image_mean": [0.5] * 3}, {"do_normalize": False}, {"image_std": "none"}]
)
def test_pixels_of_no_known_normalisation_are_refused(tmp_path, change):
    with pytest.raises(UserError, match="preprocessor_config.json: images are normalised with"):
        read_maskformer(write(tmp_path, processor=change))


def test_clips_pixels_are_known(tmp_path):
    clip = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    assert read_maskformer(write(tmp_path, processor=clip))[0].pixels == "clip"


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_file_that_is_missing_or_cut_off_is_named(tmp_path, folder, name):
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=name):
        read_maskformer(path.parent)
    path.unlink()
    with pytest.raises(UserError, match=name):
        read_maskformer(path.parent)


def test_the_table_leaves_nothing_out_by_accident():
    left = [name for name in SHAPES if any(re.fullmatch(drop, name) for drop in NOT_READ)]
    assert {name.rpartition(".")[2] for name in left} == {"num_batches_tracked", "empty_weight"}
