"""`lmseg convert`: what it writes is read back by `pretrained.*`, and nothing half done remains."""

import json
import shutil
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from lmseg_jax import assembly, checkpoint, cli, convert, state
from lmseg_jax.models.lmseg import BACKBONES
from lmseg_jax.models.resnet import ClipResNet
from lmseg_jax.pretrained import converted, mapping
from lmseg_jax.pretrained import weights as pretrained
from tests.tiny import tiny_config

CLIP = Path(__file__).parent / "fixtures" / "clip_rn_tiny.safetensors"


def command(form, source, output, *more):
    arguments = ["--from", form, "--input", str(source), "--output", str(output)]
    return cli.main(["convert", *arguments, *more])


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert") / "clip"
    assert command("open_clip", CLIP, folder) == 0
    return folder


def config_of_the_clip(weights):
    config = tiny_config()
    config.model.resnet.depths, config.model.resnet.width = (2, 1, 2, 1), 16
    config.model.resnet.norm = "frozen"
    config.model.text.layers, config.model.text.embedding = 3, 32
    config.pretrained.image = config.pretrained.text = str(weights)
    return config


def test_a_converted_clip_starts_a_model_as_its_file_does(output):
    model = config_of_the_clip(CLIP).model
    shapes = jax.eval_shape(lambda: state.weights(model, 0))
    first, second = (
        assembly.pretrained(config_of_the_clip(source), *shapes) for source in (CLIP, output)
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)
    params, frozen = second["backbone"]
    kernel = load_file(CLIP)["visual.conv1.weight"]
    np.testing.assert_array_equal(params["stem"][0]["conv"]["kernel"], kernel.transpose(2, 3, 1, 0))
    assert set(frozen["stem"][0]["norm"]) == {"scale", "bias", "mean", "var"}
    projection = load_file(CLIP)["text_projection"]
    np.testing.assert_array_equal(second["text_encoder"][1]["projection"], projection)


def test_the_manifest_says_what_was_read(output):
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["format"] == "lmseg-converted" and manifest["version"] == 1
    assert manifest["source"] == {"format": "open_clip", "input": "clip_rn_tiny.safetensors"}
    sizes = {"depths": [2, 1, 2, 1], "width": 16, "norm": "frozen"}
    assert manifest["model"]["backbone"] == "clip_resnet"
    assert manifest["model"]["resnet"] == sizes
    assert manifest["model"]["text"]["heads"] == 2
    assert manifest["taxonomies"] == {} and manifest["test"] is None
    assert {path.name for path in output.iterdir()} == {"manifest.json", "weights"}


def test_the_command_says_sizes_and_what_was_left_out_and_why(tmp_path, capsys):
    assert command("open_clip", CLIP, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "image tower: depths (2, 1, 2, 1), width 16" in printed
    assert "text tower: width 16, layers 3, heads 2, embedding 32" in printed
    pool = 5 * 512 + 3 * (512 * 512 + 512) + 32 * 512 + 32
    assert f"left out 9 tensors ({pool:,} values), such as visual.attnpool" in printed
    assert "a segmentation model reads feature maps" in printed
    assert "left out 1 tensors (1 values), such as logit_scale" in printed
    assert "read back and found equal" in printed
    assert "--config.model.resnet.depths=2,1,2,1" in printed


def test_half_precision_becomes_float32_on_disk(tmp_path):
    halved = {
        name: tensor.astype(np.float16)
        for name, tensor in load_file(CLIP).items()
        if name.startswith("visual.")
    }
    save_file(halved, tmp_path / "half.safetensors")
    assert command("open_clip", tmp_path / "half.safetensors", tmp_path / "out") == 0
    tree = checkpoint.read_tree(tmp_path / "out" / "weights")
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype(np.float32)}
    assert set(tree["params"]) == {"backbone"}


def test_torchvisions_resnet_lands_in_its_own_backbone(tmp_path, monkeypatch):
    """With a stand-in for the backbone that has the same paths."""

    class Stem(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 4, (7, 7), use_bias=False, rngs=rngs)
            self.norm = ClipResNet(depths=(1,), width=8, rngs=rngs).stem[0].norm

    class ResNet(nnx.Module):
        def __init__(self, *, depths, width, norm, rngs):
            assert (depths, width, norm) == ((1, 1, 1, 1), 4, "frozen")
            self.stem = Stem(rngs)
            self.stages = ClipResNet(depths=depths, width=width, rngs=rngs).stages

    monkeypatch.setitem(BACKBONES, "resnet", ResNet)
    foreign = {"conv1.weight": np.ones((4, 3, 7, 7), np.float32)}
    small = nnx.eval_shape(lambda: ClipResNet(depths=(1,) * 4, width=4, rngs=nnx.Rngs(0)))
    trees = nnx.to_pure_dict(nnx.state(small))["stages"]
    trees = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), trees)
    stages = mapping.unfill({"stages": trees}, pretrained.FORMATS["torchvision"].image)
    parts = ("weight", "bias", "running_mean", "running_var")
    foreign |= {f"bn1.{part}": np.full(4, i, np.float32) for i, part in enumerate(parts)}
    foreign |= {name: np.array(array) for name, array in stages.items()}
    save_file(foreign, tmp_path / "r.safetensors")
    assert command("torchvision", tmp_path / "r.safetensors", tmp_path / "out") == 0
    read = pretrained.read(str(tmp_path / "out"))
    assert (read.backbone, read.image_config) == ("resnet", {"depths": (1,) * 4, "width": 4})
    np.testing.assert_array_equal(read.tensors["backbone/stem/norm/var"], np.full(4, 3))
    assert read.tensors["backbone/stem/conv/kernel"].shape == (7, 7, 3, 4)


def test_a_whole_model_goes_through_the_reader_of_its_format(tmp_path, monkeypatch, capsys):
    def read(folder):
        model = ConfigDict({"head": "linear", "queries": 3, "resnet": {"depths": (1, 1, 1, 1)}})
        params = {"mask_head": {"layers": {0: {"kernel": np.ones((2, 3), np.float32)}}}}
        assert folder == tmp_path / "hf"
        return model, params, {}, ["wall", "sky"]

    module = types.ModuleType("lmseg_jax.pretrained.maskformer")
    module.read_maskformer = read
    monkeypatch.setitem(sys.modules, "lmseg_jax.pretrained.maskformer", module)
    (tmp_path / "hf").mkdir()
    assert command("maskformer_hf", tmp_path / "hf", tmp_path / "out") == 0
    found = converted.read(tmp_path / "out")
    assert found.model["head"] == "linear" and found.frozen == {}
    assert found.taxonomies == {"maskformer_hf": {"names": ["wall", "sky"], "things": None}}
    np.testing.assert_array_equal(found.params["mask_head"]["layers"][0]["kernel"], np.ones((2, 3)))
    assert "lmseg_jax.load" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": {"shortest_edge": 800, "longest_edge": 1333}}, (800, 1333)),
        ({"size": 512, "max_size": 2048}, (512, 2048)),
        ({"size": {"height": 800, "width": 1333}}, None),
        ({"size": "large", "max_size": 3}, None),
        ([], None),
    ],
)
def test_the_test_size_comes_from_the_image_processor(tmp_path, settings, expected):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    found = convert.size_rule(tmp_path)
    assert (found and (found["short_side"], found["max_side"])) == expected


def test_a_folder_that_holds_something_is_replaced_only_by_force(tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert command("open_clip", CLIP, folder) == 2
    assert "is not empty; name another --output, or add --force" in capsys.readouterr().err
    assert command("open_clip", CLIP, folder, "--force") == 0
    assert command("open_clip", CLIP, folder, "--force") == 0
    assert (folder / "notes.txt").read_text() == "mine"
    assert pretrained.read(str(folder)).image_config["width"] == 16


def test_force_deletes_nothing_but_checkpoints(tmp_path, capsys):
    (tmp_path / "out" / "weights").mkdir(parents=True)
    (tmp_path / "out" / "weights" / "mine.txt").write_text("mine")
    assert command("open_clip", CLIP, tmp_path / "out", "--force") == 2
    assert "weights: is no checkpoint of ours" in capsys.readouterr().err
    assert (tmp_path / "out" / "weights" / "mine.txt").exists()


def test_a_conversion_that_breaks_leaves_no_checkpoint(tmp_path, monkeypatch, capsys):
    def spoiled(folder):
        tree = checkpoint.read_tree(folder)
        tree["frozen"]["text_encoder"]["positions"][0] += 1
        return tree

    monkeypatch.setattr(converted, "checkpoint", types.SimpleNamespace(**vars(checkpoint)))
    monkeypatch.setattr(converted.checkpoint, "read_tree", spoiled)
    assert command("open_clip", CLIP, tmp_path / "out") == 2
    assert "does not hold what was written" in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"has no manifest\.json, so lmseg convert did not finish"):
        pretrained.read(str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "broken"),
        ("[]", "broken"),
        ('{"format": "lmseg-converted", "version": 2}', "version 2, this program reads"),
        ('{"format": "lmseg-converted", "version": 1}', "broken"),
    ],
)
def test_a_broken_manifest_is_named(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=rf"manifest\.json: .*{message}"):
        converted.read(tmp_path)


def test_weights_that_are_cut_off_are_named(output, tmp_path):
    shutil.copytree(output, tmp_path / "cut")
    (tmp_path / "cut" / "weights" / "_METADATA").unlink()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        converted.read(tmp_path / "cut")


def test_a_converted_image_tower_does_not_fit_another_backbone(output):
    config = config_of_the_clip(output)
    config.model.backbone = "resnet"
    with pytest.raises(ValueError, match=r"are for model\.backbone = 'clip_resnet'"):
        assembly.pretrained(config, {}, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "torchvision"], "names are those of open_clip"),
        (["--from", "maskformer_hf"], "is a folder of several files"),
    ],
)
def test_the_wrong_format_is_one_line(tmp_path, capsys, arguments, message):
    more = ["--input", str(CLIP), "--output", str(tmp_path / "out")]
    assert cli.main(["convert", *arguments, *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
