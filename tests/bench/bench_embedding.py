"""Embedding image-caption pairs with ViT-B/32: ours against clip-retrieval 2.45.0's reader and mapper.

Run in the peers' environment, as `make bench` does. Both read the same shards with the same (random) weights, in turns,
and the vectors are compared. About 15 minutes on 2 cores.
"""

from __future__ import annotations

import io
import random
import shutil
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
from PIL import Image

from priorkit.pipeline.clip.encoder import load_encoder
from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.compute.device import resolve
from priorkit.pipeline.contract.image_shards import list_image_shards, read_samples
from priorkit.pipeline.contract.storage import Store
from priorkit.pipeline.embed.settings import EmbedSettings
from priorkit.pipeline.embed.stage import embed

MODEL, BATCH = "ViT-B-32", 64
WORDS = ("a", "photo", "of", "the", "red", "house", "near", "river", "with", "two", "dogs", "at", "night", "painting")
WAYS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "text only, float32": {"dtype": "float32", "image": False},
}


def write_shards(folder: Path, pairs: int, shards: int) -> None:
    """Smooth random JPEGs of about 256 pixels, with captions of 2 to 40 tokens, most of them short."""
    choose = random.Random(0)
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row in range(pairs // shards):
                number = shard * (pairs // shards) + row
                coarse = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
                file = io.BytesIO()
                size = (256, 256 + 32 * choose.randrange(4))
                Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
                words = min(38, 1 + int(choose.expovariate(1 / 9)))
                caption = " ".join(choose.choice(WORDS) for _ in range(words))
                for extension, data in (("jpg", file.getvalue()), ("txt", caption.encode())):
                    info = tarfile.TarInfo(f"{number:08d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def settings_of(checkpoint: Path, way: str, threads: int) -> EmbedSettings:
    """Ours, for one of `WAYS`."""
    clip = ClipSettings(model=MODEL, pretrained=str(checkpoint), quick_gelu=False)
    return EmbedSettings(clip=clip, device="cpu", batch_size=BATCH, threads=threads, **WAYS[way])


class Upstream:
    """clip-retrieval's reader and mapper, without its writer and logger."""

    def __init__(self, checkpoint: Path, shards: list[str], image: bool) -> None:
        from all_clip import load_clip
        from clip_retrieval.clip_inference.mapper import ClipMapper

        name = f"open_clip:{MODEL}/{checkpoint}"
        self._shards, self._image = shards, image
        _, self._preprocess, self._tokenizer = load_clip(clip_model=name, use_jit=False, warmup_batch_size=1)
        self._mapper = ClipMapper(image, True, False, False, name, False, None)
        self.embeds: dict[str, dict[str, np.ndarray]] = {}
        """Images by key, texts by caption: with two reading processes, batches of the two shards take turns."""

    def run(self) -> float:
        """Pairs a second after the first batch."""
        from clip_retrieval.clip_inference.reader import WebdatasetReader

        reader = WebdatasetReader(
            lambda urls: urls, self._preprocess, self._tokenizer, self._shards, BATCH, 2,
            enable_text=True, enable_image=self._image,
        )  # fmt: skip
        self.embeds = {"img_emb": {}, "text_emb": {}}
        start, pairs = 0.0, 0
        for number, batch in enumerate(reader):
            made = self._mapper(batch)
            self.embeds["text_emb"] |= dict(zip(made["text"], made["text_embs"], strict=True))
            if self._image:
                self.embeds["img_emb"] |= dict(zip(made["image_filename"], made["image_embs"], strict=True))
            if number == 0:
                start = time.perf_counter()
            else:
                pairs += len(made["text_embs"])
        return pairs / (time.perf_counter() - start)


def bare_towers(settings: EmbedSettings, images: Path) -> tuple[float, float]:
    """Seconds of a pair in the image tower, and in the cut text tower, on what is ready in memory."""
    encoder = load_encoder(resolve(settings, "embed").encoder_settings())
    store = Store(str(images))
    samples = [sample for shard in list_image_shards(store) for sample in read_samples(store, shard)][: 8 * BATCH]
    captions = [(sample.caption or b"").decode() for sample in samples]
    tokens = encoder.tokenize(captions)
    pixels = encoder.prepare([encoder.decode(sample.image or b"") for sample in samples[:BATCH]])

    def image() -> None:
        for _ in range(2):
            encoder.encode_pixels(pixels)

    def text() -> None:
        encoder.encode_tokens(tokens)

    seconds = harness.in_turns({"image": image, "text": text}, 4)
    per_image = harness.median(seconds["image"][1:]) / (2 * BATCH) if settings.image else 0.0
    return per_image, harness.median(seconds["text"][1:]) / len(captions)


def cosines(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The smallest cosine of two arrays of vectors `[N, D]`."""
    a, b = mine.astype(np.float64), theirs.astype(np.float64)
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())


def compare(results: list[dict[str, Any]], work: Path, checkpoint: Path, way: str, rounds: int, threads: int) -> None:
    """Rates of both in turns, their vectors, and the bare towers."""
    images, out = work / "images", work / "out"
    settings = settings_of(checkpoint, way, threads)
    upstream = Upstream(checkpoint, [str(path) for path in sorted(images.glob("*.tar"))], settings.image)
    load_encoder(resolve(settings, "embed").encoder_settings())
    rates: dict[str, list[float]] = {"ours": [], "theirs": [], "bare": []}
    image_seconds, text_seconds = 0.0, 0.0

    def ours() -> float:
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        result = embed(str(images), str(out), settings)
        return result.rows / (time.perf_counter() - start)

    for _ in range(rounds):
        rates["ours"].append(ours())
        rates["theirs"].append(upstream.run())
        image_seconds, text_seconds = bare_towers(settings, images)
        rates["bare"].append(1 / (image_seconds + text_seconds))
    names = {path.stem.rpartition("_")[2] for path in (out / "metadata").glob("*.parquet")}
    smallest, rows = 1.0, 0
    for name in sorted(names):
        metadata = pq.read_table(out / f"metadata/metadata_{name}.parquet").to_pydict()
        rows += len(metadata["key"])
        for kind, labels in (("img_emb", metadata["key"]), ("text_emb", metadata["caption"])):
            if settings.image or kind == "text_emb":
                theirs = np.stack([upstream.embeds[kind][label] for label in labels])
                smallest = min(smallest, cosines(np.load(out / f"{kind}/{kind}_{name}.npy"), theirs))
    harness.report(
        results, bench="pairs a second", way=way, pairs=rows, ours=rates["ours"], upstream=rates["theirs"],
        bare_towers=rates["bare"], times_faster=harness.paired_ratio(rates["ours"], rates["theirs"]),
        of_bare_towers=harness.paired_ratio(rates["ours"], rates["bare"]), image_seconds=image_seconds,
        text_seconds=text_seconds, smallest_cosine=smallest,
    )  # fmt: skip


def page(results: list[dict[str, Any]]) -> str:
    """The text and table of the page."""
    rates = harness.table(
        results,
        {
            "what": "{way}", "ours, pairs/s": "{ours:.1f}", "clip-retrieval, pairs/s": "{upstream:.1f}",
            "times faster": "{times_faster:.2f}", "bare towers, pairs/s": "{bare_towers:.1f}",
            "share of bare": "{of_bare_towers:.2f}", "smallest cosine": "{smallest_cosine:.6f}",
        },
    )  # fmt: skip
    return f"""
{MODEL} with random weights, batches of {BATCH}, JPEGs of 256 pixels and more, captions of 2 to 40 tokens, on the CPU.
clip-retrieval is its reader and mapper, from the second batch on, in float32; ours is the whole command, writing
included. The bare towers are both towers on tensors that are ready, texts cut and sorted: what no pipeline can exceed.
Runs are in turns; rates are medians, ratios medians of each round's ratio.

{rates}
"""


def main() -> None:
    """Run all of it."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--pairs", type=int, default=1088, help="pairs in all, in two shards")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_shards(work / "images", arguments.pairs, 2)
        torch.manual_seed(0)
        checkpoint = work / "random.pt"
        torch.save(open_clip.create_model(MODEL, pretrained=None).state_dict(), checkpoint)
        for way in WAYS:
            compare(results, work, checkpoint, way, arguments.rounds, arguments.threads)
    if not arguments.no_page:
        packages = ("torch", "open_clip_torch", "clip-retrieval", "numpy")
        harness.write_page("embedding", "Embedding with a CLIP", page(results), results, packages)


if __name__ == "__main__":
    main()
