"""Times an update of Hugging Face's MaskFormer (torch) and of ours, in turns.

This folder is no part of the package: what stands here needs torch, which lmseg_jax never does.

    pip install torch==2.13.0 transformers==5.23.0 scipy
    python bench/peer_maskformer.py --size 256 --batch 2 --ours-python .venv/bin/python --json F

Each side is a process of its own, so that neither holds the other's threads; the one that is not
asked waits for a line. The first update of each is not timed; then they alternate, and each second
time the other begins. The ratio is the median of the runs' ratios, ours / peer; below 1 ours is
faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("ours", "peer")
CLASSES = 150
DIFFERENCES = (
    "peer: one more loss (its number stands above): the queries that enter the first decoder layer "
    "are supervised, too",
    "peer: batch norms are live (statistics of the batch) and trained; ours are constants",
    "peer: has a list of the masks that there are; ours computes --slots of them",
    "ours: sets glibc's malloc as its programs do (heap.keep_freed_memory); with --heap-of-both "
    "the peer does, too",
    "ours: clips the norm of the gradient",
    "both: ResNet-50, FPN, dropout 0.1 at the same places, random weights, AdamW, f32, matching on "
    "the host at the resolution of the predictions, loss at that of the image",
)
TINY = {"width": 32, "layers": 1, "queries": 30}  # to see that it runs; says nothing about speed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="of the square images")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--targets", type=int, default=24, help="segments of each image")
    parser.add_argument("--slots", type=int, default=0, help="of ours; 0 = --targets")
    parser.add_argument("--runs", type=int, default=9, help="alternating runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--ours-python", default=sys.executable, help="has lmseg_jax's libraries")
    parser.add_argument("--heap-of-both", action="store_true", help="the peer's malloc as ours")
    parser.add_argument("--tiny", action="store_true", help="small models: only shows that it runs")
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return serve(options)
    found = compare(options)
    print(table(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0


def compare(options: argparse.Namespace) -> dict:
    """Starts both sides and asks them in turns."""
    flags = []
    for name in ("size", "batch", "targets", "slots", "threads"):
        flags += [f"--{name}", str(getattr(options, name))]
    flags += ["--tiny"] * options.tiny + ["--heap-of-both"] * options.heap_of_both
    # a waiting process must not spin on the cores of the other
    environment = os.environ | {
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    sides = {}
    for side, python in (("ours", options.ours_python), ("peer", sys.executable)):
        sides[side] = subprocess.Popen(
            [python, __file__, "--side", side, *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
    try:
        about = {side: answer(process, side) for side, process in sides.items()}
        times = {side: [] for side in SIDES}
        for run in range(options.runs):
            for side in SIDES if run % 2 == 0 else reversed(SIDES):
                times[side].append(ask(sides[side], side)["seconds"])
    finally:
        for process in sides.values():
            process.kill()
            process.wait()
    ratios = [ours / peer for ours, peer in zip(*times.values(), strict=True)]
    return {
        "size": options.size,
        "batch": options.batch,
        "targets": options.targets,
        "runs": options.runs,
        "threads": options.threads,
        "heap_of_both": options.heap_of_both,
        "tiny": options.tiny,
        "about": about,
        "times_s": times,
        "median_s": {side: statistics.median(found) for side, found in times.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "differences": DIFFERENCES,
    }


def ask(process: subprocess.Popen, side: str) -> dict:
    """One update of a side."""
    process.stdin.write("run\n")
    process.stdin.flush()
    return answer(process, side)


def answer(process: subprocess.Popen, side: str) -> dict:
    """A side's next line."""
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{side}: ended with status {process.wait()}; its error stands above")
    return json.loads(line)


def serve(options: argparse.Namespace) -> int:
    """One side: makes an update for each line that it reads, and writes its seconds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not stand among the answers

    def say(what):
        print(json.dumps(what), file=answers, flush=True)

    about, update = (ours if options.side == "ours" else peer)(options)
    update()  # what happens only once is not timed
    say(about)
    for _ in sys.stdin:
        loss, seconds = update()
        say({"loss": loss, "seconds": seconds})
    return 0


def ours(options: argparse.Namespace):
    """An update of lmseg_jax with a linear head, no category guidance and an ImageNet R50."""
    from lmseg_jax import heap

    heap.keep_freed_memory()
    import jax

    from lmseg_jax import bench_step

    config = bench_step.paper_config(
        "linear", batch=options.batch, slots=options.slots or options.targets
    )
    if options.tiny:
        config.model.width = config.model.pixel_decoder.width = TINY["width"]
        config.model.decoder.layers, config.model.queries = TINY["layers"], TINY["queries"]
        config.model.decoder.feedforward = TINY["width"]
        config.model.resnet.depths, config.model.resnet.width = (1, 1, 1, 1), 8
    update = bench_step.Update(config, size=options.size, targets=options.targets)

    def run():
        seconds = update.run()
        return update.loss, seconds

    parameters = sum(leaf.size for leaf in jax.tree.leaves(update.state.params))
    return {"jax": jax.__version__, "parameters": parameters, "gflop": update.gflop}, run


def peer(options: argparse.Namespace):
    """An update of Hugging Face's MaskFormer with the same sizes."""
    if options.heap_of_both:
        from lmseg_jax import heap

        heap.keep_freed_memory()
    import numpy as np
    import torch
    import transformers
    from transformers import (
        DetrConfig,
        MaskFormerConfig,
        MaskFormerForInstanceSegmentation,
        ResNetConfig,
    )

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    sizes = {"d_model": 256, "decoder_layers": 6, "num_queries": 100, "decoder_ffn_dim": 2048}
    backbone = {}
    if options.tiny:
        width, layers, queries = (TINY[key] for key in ("width", "layers", "queries"))
        sizes = {"d_model": width, "decoder_layers": layers, "num_queries": queries}
        sizes["decoder_ffn_dim"] = width
        backbone = {
            "embedding_size": 8,
            "hidden_sizes": [32, 64, 128, 256],
            "depths": [1, 1, 1, 1],
        }
    width = sizes["d_model"]
    config = MaskFormerConfig(
        backbone_config=ResNetConfig(
            out_features=["stage1", "stage2", "stage3", "stage4"], **backbone
        ),
        decoder_config=DetrConfig(
            decoder_attention_heads=8,
            encoder_layers=0,
            dropout=0.1,
            attention_dropout=0.1,
            activation_dropout=0.1,
            **sizes,
        ),
        fpn_feature_size=width,
        mask_feature_size=width,
        use_auxiliary_loss=True,
        num_labels=CLASSES,
    )
    model = MaskFormerForInstanceSegmentation(config).train()
    about = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    rng = np.random.default_rng(0)
    size, batch, targets = options.size, options.batch, options.targets
    pixels = torch.from_numpy(rng.normal(size=(batch, 3, size, size)).astype(np.float32))
    cells = rng.integers(0, targets, (batch, 8, 8))
    segments = np.kron(cells, np.ones((1, size // 8, size // 8), int))
    masks = [torch.from_numpy(s == np.arange(targets)[:, None, None]).float() for s in segments]
    classes = [torch.from_numpy(rng.integers(0, CLASSES, targets)) for _ in range(batch)]

    def run():
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        out = model(
            pixel_values=pixels,
            mask_labels=masks,
            class_labels=classes,
            output_hidden_states=True,  # auxiliary losses read them, and fail without
            output_auxiliary_logits=True,
        )
        about["losses"] = len(out.auxiliary_logits) + 1
        out.loss.backward()
        optimizer.step()
        loss = out.loss.item()
        return loss, time.perf_counter() - began

    return about, run


def table(found: dict) -> str:
    """What was measured, for a person."""
    lines = [
        f"an update, {found['batch']} x {found['size']}x{found['size']}, {found['targets']} "
        f"targets, {found['runs']} alternating runs, {found['threads']} threads of torch"
        + (", TINY models: not the measurement" if found["tiny"] else ""),
    ]
    for side in SIDES:
        times, about = found["times_s"][side], found["about"][side]
        lines.append(
            f"  {side}: median {found['median_s'][side]:.3f} s, {min(times):.3f} to "
            f"{max(times):.3f}; " + ", ".join(f"{key} {value}" for key, value in about.items())
        )
    lines.append(f"  ratio ours / peer: {found['ratio']:.3f}")
    return "\n".join(lines + ["what differs:", *(f"  {line}" for line in found["differences"])])


if __name__ == "__main__":
    sys.exit(main())
