"""Train the small CLIP model of the offline demo on OpenMoji pictures and their names.

Command, in a checkout installed with `pip install -e ".[demo]"`:

    python -m priorkit.recipes.demo.train_clip --output recipes/demo --cache path/to/scratch

Hardware: 2 CPU cores with bfloat16 instructions, no GPU.
Duration: 25 minutes on a busy machine (104 s to draw the pictures and 1,420 s to train). On idle cores, an epoch takes
7 s, so the 110 epochs take 13 minutes.
Expected: text-to-image recall@10 of 0.99 on training pairs and 0.65 on held-out pairs.

Of the 3,953 pairs, 226 (6%) are held out of training. A hash of the emoji's code selects them. Weights are stored in
float16. The evaluation loads the stored weights with open_clip and processes pictures as in the demo: files of various
sizes and formats are converted to JPEG images of 128 x 128 pixels with quality 95, then preprocessed by open_clip.

Shape symbols: B batch size, N number of pairs, D embedding size, C context length in tokens, V variants per picture,
S image side.
"""

import argparse
import copy
import hashlib
import io
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import open_clip
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from ...pipeline.contract.storage import atomic_file
from ..demo_picture import IMAGE_SIZES, Emoji, emojis, render, write_images

IMAGE_SIDE = 64
"""Side length of the model's input images, in pixels."""
MODEL_CFG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": IMAGE_SIDE, "layers": [1, 2, 2, 1], "width": 16, "head_width": 64, "patch_size": None},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 56, "heads": 7, "layers": 4},
}
PREPROCESS_CFG: dict[str, Any] = {
    "size": IMAGE_SIDE,
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}

DATASET_SIDE = 128
"""Side length, in pixels, of the images that the demo's download stage stores."""
DATASET_QUALITY = 95
"""JPEG quality of the images that the demo's download stage stores."""
NEIGHBOURS = 32
"""Maximum number of pairs with consecutive emoji codes that `batches` keeps together if `group_neighbours` is True."""
EMA_DECAY = 0.995
"""Decay per training step of the exponential moving average of the weights."""
MAX_LOGIT_SCALE = 100.0
"""Upper bound of the logit scale, as in CLIP (Radford et al. 2021)."""


def held_out(code: str) -> bool:
    """Return True if an emoji is held out of training.

    The result depends only on a hash of the emoji's code, so adding emoji does not change the split of existing emoji.
    """
    return hashlib.sha256(f"held-out {code}".encode()).digest()[0] % 20 == 0


def main() -> None:
    """Draw the pictures, train and save the model, then load and evaluate the stored weights.

    With `--evaluate`, evaluate the weights that are already stored, without training.
    """
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    pairs = emojis()
    started = time.perf_counter()
    write_images(arguments.cache / "images")
    if not arguments.evaluate:
        variants = training_variants(pairs, arguments.variants, arguments.seed, arguments.cache)
        print(f"pictures drawn in {time.perf_counter() - started:.0f} s", flush=True)
        model = train(pairs, variants, arguments)
        save(model, arguments.output)
    measured = evaluate(pairs, arguments.output, arguments.cache / "images")
    print(json.dumps(measured, indent=2))


def parse_arguments() -> argparse.Namespace:
    """Parse the script's command-line arguments, and return their values."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the config and the weights")
    parser.add_argument("--cache", type=Path, required=True, help="scratch folder for drawn pictures, 500 MB")
    parser.add_argument("--evaluate", action="store_true", help="measure the stored weights, train nothing")
    parser.add_argument("--epochs", type=int, default=110, help="passes over the training pairs")
    parser.add_argument("--batch-size", type=int, default=256, help="pairs per step")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak of warm-up and cosine decay")
    parser.add_argument("--weight-decay", type=float, default=0.2, help="AdamW's, on matrices and kernels")
    parser.add_argument("--variants", type=int, default=8, help="distorted drawings of each picture")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights, order and distortions")
    return parser.parse_args()


def training_variants(pairs: list[Emoji], count: int, seed: int, cache: Path) -> NDArray[np.uint8]:
    """Return `count` (V) distorted versions of each pair's picture, as a memory-mapped array (V, N, S, S, 3).

    N is the number of pairs, and S the side length of an image in pixels.

    The first call draws the pictures and stores them in the folder `cache`. Later calls with the same number of pairs,
    `count` and `seed` load the stored pictures.
    """
    path = cache / f"variants-{len(pairs)}-{count}-{IMAGE_SIDE}-{seed}.npy"
    if not path.exists():
        pictures = np.empty((count, len(pairs), IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
        with ProcessPoolExecutor(initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            drawn = pool.map(partial(distorted, count=count, seed=seed), (pair.code for pair in pairs), chunksize=64)
            for index, picture in enumerate(drawn):
                pictures[:, index] = picture
        with atomic_file(path) as file:
            np.save(file, pictures)
    drawn_before: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return drawn_before


def distorted(code: str, count: int, seed: int) -> NDArray[np.uint8]:
    """Draw an emoji `count` (V) times, each time with a random scale, shift, image size and file format.

    Each drawing is converted as in the demo's download stage, then resized to the model's input size. Flips and hue
    changes are not used, because captions name directions and colours.

    Returns:
        (V, S, S, 3) pixels, where S is the side length of an image.
    """
    random = np.random.default_rng([seed, *hashlib.sha256(code.encode()).digest()])
    original = render(code, max(IMAGE_SIZES))
    margin = original.width // 4
    bordered = ImageOps.expand(original, margin, fill="white")
    pictures = []
    for _ in range(count):
        zoom = random.uniform(0.92, 1.14)  # relative size of the frame; above 1, the emoji is drawn smaller
        left, top = margin + original.width * ((1 - zoom) / 2 + random.uniform(-0.04, 0.04, size=2))
        frame = (left, top, left + original.width * zoom, top + original.width * zoom)
        side = int(random.choice(IMAGE_SIZES))
        drawn = bordered.resize((side, side), Image.Resampling.LANCZOS, box=frame)
        file = io.BytesIO()
        image_format = str(random.choice(["JPEG", "PNG", "WebP"]))
        drawn.save(file, image_format, quality=int(random.integers(75, 96)))
        stored = Image.open(io.BytesIO(as_dataset_jpeg(file.getvalue())))
        pictures.append(np.asarray(stored.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC)))
    return np.stack(pictures)


def as_dataset_jpeg(content: bytes) -> bytes:
    """Convert the bytes of an image file to those of a 128 x 128 pixel JPEG, as the demo's download stage does."""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    interpolation = cv2.INTER_AREA if image.shape[0] > DATASET_SIDE else cv2.INTER_LANCZOS4
    resized = cv2.resize(image, (DATASET_SIDE, DATASET_SIDE), interpolation=interpolation)
    return cv2.imencode(".jpg", resized, [cv2.IMWRITE_JPEG_QUALITY, DATASET_QUALITY])[1].tobytes()


def train(pairs: list[Emoji], variants: NDArray[np.uint8], arguments: argparse.Namespace) -> open_clip.CLIP:
    """Train a new CLIP model on the pairs that are not held out.

    Args:
        pairs: all N pairs, including those held out.
        variants: V distorted pictures of each pair, with sides of S pixels: (V, N, S, S, 3).
        arguments: command-line arguments of the script.

    Returns:
        A model whose weights are the moving average of the trained weights.
    """
    train_rows = np.array([row for row, pair in enumerate(pairs) if not held_out(pair.code)])
    tokens = open_clip.SimpleTokenizer()(
        [pair.caption for pair in pairs], MODEL_CFG["text_cfg"]["context_length"]
    )  # (N, C)

    model = open_clip.CLIP(**MODEL_CFG).to(memory_format=torch.channels_last)
    with torch.no_grad():  # tokens that no training caption contains get a zero vector, not a random one
        unseen = torch.ones(model.vocab_size, dtype=torch.bool)
        unseen[tokens[train_rows].unique()] = False
        model.token_embedding.weight[unseen] = 0
    average = copy.deepcopy(model).eval()

    decayed = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": arguments.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=arguments.learning_rate,
        betas=(0.9, 0.98),
    )
    steps = arguments.epochs * (len(train_rows) // arguments.batch_size)
    warmup = max(1, steps // 20)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warmup) / (steps - warmup))),
    )

    random = np.random.default_rng(arguments.seed)
    started = time.perf_counter()
    for epoch in range(arguments.epochs):
        losses = []
        for rows in batches(train_rows, arguments.batch_size, group_neighbours=epoch % 2 == 0, random=random):
            loss = contrastive_loss(model, augmented(variants, rows, random), tokens[rows])
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
            update_average(average, model)
            losses.append(loss.item())
        print(
            f"epoch {epoch + 1}/{arguments.epochs} loss {np.mean(losses):.4f} "
            f"logit scale {model.logit_scale.exp().item():.1f} {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    return average


def batches(
    rows: NDArray[np.int64], batch_size: int, *, group_neighbours: bool, random: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield the batches of one epoch in random order, each as an array of row numbers (B,).

    If the last batch is incomplete, it is dropped.

    Args:
        rows: row numbers of the training pairs, sorted by code.
        batch_size: number of rows per batch.
        group_neighbours: True to keep runs of up to `NEIGHBOURS` consecutive pairs together and shuffle only the runs;
            False to shuffle the pairs. Pairs in a run often differ only in skin tone or gender, so that they are hard
            negatives for each other.
        random: random number generator.
    """
    if group_neighbours:
        runs = np.array_split(np.roll(rows, random.integers(len(rows))), math.ceil(len(rows) / NEIGHBOURS))
        order = np.concatenate([runs[index] for index in random.permutation(len(runs))])
    else:
        order = random.permutation(rows)
    for start in range(0, len(order) - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def augmented(variants: NDArray[np.uint8], rows: NDArray[np.int64], random: np.random.Generator) -> Tensor:
    """Return a random variant of each row's picture, shifted by up to 2 pixels and normalised, with noise added.

    Args:
        variants: V distorted pictures of each of N pairs, with sides of S pixels: (V, N, S, S, 3).
        rows: row numbers of the B pairs in the batch, (B,).
        random: random number generator for the choice of variants and the shifts. The noise comes from torch's global
            generator.

    Returns:
        (B, 3, S, S) normalised pixels.
    """
    size = len(rows)
    pictures = variants[random.integers(len(variants), size=size), rows]
    padded = np.pad(pictures, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=255)
    down = random.integers(5, size=(size, 1)) + np.arange(IMAGE_SIDE)
    right = random.integers(5, size=(size, 1)) + np.arange(IMAGE_SIDE)
    moved = padded[np.arange(size)[:, None, None], down[:, :, None], right[:, None, :]]  # (B, S, S, 3)
    images = torch.from_numpy(moved).permute(0, 3, 1, 2).float() / 255  # (B, 3, S, S), channels last in memory
    mean, std = (torch.tensor(PREPROCESS_CFG[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (images - mean) / std + 0.03 * torch.randn_like(images)


def contrastive_loss(model: open_clip.CLIP, images: Tensor, tokens: Tensor) -> Tensor:
    """Return CLIP's training loss for a batch: the symmetric cross-entropy (Radford et al. 2021), in nats.

    Args:
        model: CLIP model.
        images: (B, 3, S, S) normalised pixels of B images with sides of S pixels.
        tokens: (B, C) token IDs of their captions, C per caption.
    """
    with torch.autocast("cpu", torch.bfloat16):
        image_embed = model.encode_image(images)
    image_embed = functional.normalize(image_embed.float(), dim=-1)  # (B, D)
    text_embed = model.encode_text(tokens, normalize=True)  # (B, D); float32: bfloat16 is no faster at this size
    logits = model.logit_scale.exp() * image_embed @ text_embed.T  # (B, B)
    targets = torch.arange(len(logits))
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2


@torch.no_grad()
def update_average(average: torch.nn.Module, model: torch.nn.Module) -> None:
    """Move the values of `average` towards those of `model`, after a training step.

    The model `average` contains the exponential moving average of the weights and batch-norm statistics of `model`.
    Integer buffers are not averaged but copied.
    """
    current = model.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(current[name], 1 - EMA_DECAY)
        else:
            value.copy_(current[name])


def save(model: torch.nn.Module, folder: Path) -> None:
    """Write a model to `folder` as a weights file (float16) and a config file. Each file is written atomically.

    open_clip can load the model by the name `local-dir:FOLDER`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    with atomic_file(folder / "open_clip_model.safetensors") as file:
        file.write(safetensors.torch.save(weights))
    with atomic_file(folder / "open_clip_config.json") as file:
        config = {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG}
        file.write((json.dumps(config, indent=2) + "\n").encode())


@torch.inference_mode()
def evaluate(pairs: list[Emoji], folder: Path, images: Path) -> dict[str, float]:
    """Evaluate a stored model: text-to-image recall, and mean cosine similarity between captions and pictures.

    For recall, each caption is compared with all N pictures: those used for training and those held out.

    Args:
        pairs: all N pairs.
        folder: folder of the stored model; see `save`.
        images: folder of the emoji pictures. Missing pictures are drawn and written.

    Returns:
        Metrics by name. Training pairs and held-out pairs have separate metrics.
    """
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    stored = [as_dataset_jpeg((images / name).read_bytes()) for name, _ in write_images(images)]

    started = time.perf_counter()
    image_embed = torch.cat(
        [
            model.encode_image(
                torch.stack([preprocess(Image.open(io.BytesIO(content))) for content in stored[start : start + 256]]),
                normalize=True,
            )
            for start in range(0, len(stored), 256)
        ]
    )  # (N, D)
    text_embed = torch.cat(
        [
            model.encode_text(tokenizer([pair.caption for pair in pairs[start : start + 256]]), normalize=True)
            for start in range(0, len(pairs), 256)
        ]
    )  # (N, D)
    seconds = time.perf_counter() - started

    cosine = text_embed @ image_embed.T  # (N, N)
    matching = cosine.diagonal()
    nearer = (cosine > matching[:, None]).sum(dim=1)  # (N,) pictures nearer to the caption than the matching picture
    found, found_first = (nearer < 10).float(), (nearer < 1).float()
    unseen = torch.tensor([held_out(pair.code) for pair in pairs])
    return {
        "pairs": len(pairs),
        "pairs held out": int(unseen.sum()),
        "recall@10, trained on": found[~unseen].mean().item(),
        "recall@10, held out": found[unseen].mean().item(),
        "recall@10, all": found.mean().item(),
        "recall@1, trained on": found_first[~unseen].mean().item(),
        "recall@1, held out": found_first[unseen].mean().item(),
        "cosine of matching pairs, trained on": matching[~unseen].mean().item(),
        "cosine of matching pairs, held out": matching[unseen].mean().item(),
        "cosine of unrelated pairs": ((cosine.sum() - matching.sum()) / (cosine.numel() - len(pairs))).item(),
        "encoding, seconds": seconds,
        "weights, bytes": (folder / "open_clip_model.safetensors").stat().st_size,
    }


if __name__ == "__main__":
    main()
