"""The adopt stage: manifest, resume, refusals, and reading what was written."""

from __future__ import annotations

import io
import json
from pathlib import Path

import fsspec
import numpy as np
import pytest

from priorkit.pipeline.adopt.settings import AdoptSettings
from priorkit.pipeline.adopt.stage import adopt, plan_adopt
from priorkit.pipeline.clip.settings import ClipSettings
from priorkit.pipeline.errors import FolderError, InputError, PriorkitError, SettingsError
from priorkit.pipeline.inspect.folder import inspect_folder
from priorkit.pipeline.read.dataset import read_embeddings

from ....conftest import QuietHandler, serving
from .conftest import IMAGE, ROWS, TEXT, clip_retrieval, datacomp, hugging_face, save, units


def settings(**values: object) -> AdoptSettings:
    return AdoptSettings(**({"not_clip": "clap and dino"} | values))  # type: ignore[arg-type]


def two_spaces(folder: Path) -> Path:
    for part in range(2):
        save(folder / f"audio/part-{part}.npy", units(ROWS, TEXT, part))
        save(folder / f"image/part-{part}.npy", units(ROWS, IMAGE, 10 + part))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Return all files except logs, whose times differ."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "stats"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_two_spaces_are_recorded_and_read(tmp_path: Path) -> None:
    result = adopt(str(two_spaces(tmp_path / "in")), str(tmp_path / "out"), settings(source="audio", target="image"))
    assert (result.stage, result.units, result.done_now, result.rows) == ("adopt", 2, 2, 2 * ROWS)
    assert result.statistics["source"]["norm_mean"] == pytest.approx(1, abs=1e-3)
    assert result.notes[0].startswith("source audio: 4 values of float32, norms 1 to 1")
    about = json.loads((tmp_path / "out/manifest.json").read_text())["about"]
    assert about == {
        "not_clip": "clap and dino",
        "spaces": {
            "source": {"role": "source", "name": "audio", "size": 4, "files": "text_emb", "dtypes": ["float32"]},
            "target": {"role": "target", "name": "image", "size": 6, "files": "img_emb", "dtypes": ["float32"]},
        },
    }
    dataset = read_embeddings(str(tmp_path / "out"))
    assert (dataset.count, dataset.embed_dim, dataset.text_dim) == (2 * ROWS, 6, 4)
    batch = dataset.take(np.array([ROWS + 3, 2]))
    np.testing.assert_allclose(batch.image_embed, [units(ROWS, 6, 11)[3], units(ROWS, 6, 10)[2]], atol=1e-3)
    np.testing.assert_allclose(batch.text_embed, [units(ROWS, 4, 1)[3], units(ROWS, 4, 0)[2]], atol=1e-3)
    assert dataset.spaces == {
        "source": {"name": "audio", "size": 4, "model": "clap and dino"},
        "target": {"name": "image", "size": 6, "model": "clap and dino"},
    }
    assert inspect_folder(str(tmp_path / "out")).problems == []


@pytest.mark.parametrize("write", [clip_retrieval, datacomp, hugging_face], ids=lambda write: write.__name__)
def test_adopted_folders_are_sound(write: object, tmp_path: Path) -> None:
    chosen = {"source": "l14_txt", "target": "l14_img"} if write is datacomp else {}
    write(tmp_path / "in")  # type: ignore[operator]
    adopt(str(tmp_path / "in"), str(tmp_path / "out"), settings(**chosen))
    inspection = inspect_folder(str(tmp_path / "out"))
    assert (inspection.problems, inspection.stage) == ([], "adopt")
    dataset = read_embeddings(str(tmp_path / "out"))
    assert dataset.metadata(np.array([0]), ["key", "caption"]).num_rows == 1


def test_the_same_command_does_nothing_and_writes_the_same_bytes_elsewhere(tmp_path: Path) -> None:
    two_spaces(tmp_path / "in")
    chosen = settings(source="audio", target="image", rows_per_shard=7)
    adopt(str(tmp_path / "in"), str(tmp_path / "out"), chosen)
    before = content(tmp_path / "out")
    assert adopt(str(tmp_path / "in"), str(tmp_path / "out"), chosen).done_now == 0
    assert content(tmp_path / "out") == before
    adopt(str(tmp_path / "in"), str(tmp_path / "new"), chosen)
    assert content(tmp_path / "new") == before


def test_a_changed_file_is_adopted_again(tmp_path: Path) -> None:
    two_spaces(tmp_path / "in")
    chosen = settings(source="audio", target="image")
    adopt(str(tmp_path / "in"), str(tmp_path / "out"), chosen)
    save(tmp_path / "in/audio/part-1.npy", units(ROWS, TEXT, 77))
    assert plan_adopt(str(tmp_path / "in"), str(tmp_path / "out"), chosen).pending_units == 1
    assert adopt(str(tmp_path / "in"), str(tmp_path / "out"), chosen).done_now == 1
    batch = read_embeddings(str(tmp_path / "out")).take(np.array([ROWS]))
    np.testing.assert_allclose(batch.text_embed[0], units(ROWS, TEXT, 77)[0], atol=1e-3)


def test_an_unfinished_folder_is_not_read(tmp_path: Path) -> None:
    two_spaces(tmp_path / "in")
    chosen = settings(source="audio", target="image")
    save(tmp_path / "in/audio/part-1.npy", np.zeros((ROWS, TEXT), np.float32))
    with pytest.raises(InputError, match="row 0: the text embedding is all zeros"):
        adopt(str(tmp_path / "in"), str(tmp_path / "out"), chosen)
    with pytest.raises(InputError, match="holds 1 of 2 shards; `priorkit adopt` is still running or was killed"):
        read_embeddings(str(tmp_path / "out"))
    save(tmp_path / "in/audio/part-1.npy", units(ROWS, TEXT))
    assert adopt(str(tmp_path / "in"), str(tmp_path / "out"), chosen).done_now == 1


@pytest.mark.parametrize("change", [{"normalise": True}, {"not_clip": "other"}, {"rows_per_shard": 5}])
def test_other_settings_are_refused(change: dict[str, object], tmp_path: Path) -> None:
    two_spaces(tmp_path / "in")
    chosen: dict[str, object] = {"source": "audio", "target": "image"}
    adopt(str(tmp_path / "in"), str(tmp_path / "out"), settings(**chosen))
    with pytest.raises(FolderError, match=f"was made with other settings .*{next(iter(change))}"):
        adopt(str(tmp_path / "in"), str(tmp_path / "out"), settings(**chosen, **change))
    adopt(str(tmp_path / "in"), str(tmp_path / "out"), settings(**chosen, **change), overwrite=True)


def test_a_limit_writes_the_first_rows_alone(tmp_path: Path) -> None:
    two_spaces(tmp_path / "in")
    chosen = settings(source="audio", target="image", rows_per_shard=8)
    assert adopt(str(tmp_path / "in"), str(tmp_path / "out"), chosen, limit=11).rows == 11
    assert adopt(str(tmp_path / "in"), str(tmp_path / "out"), chosen).done_now == 5
    with pytest.raises(FolderError, match="holds shard 0002, which is not in what would be adopted; leave --limit out"):
        adopt(str(tmp_path / "in"), str(tmp_path / "out"), chosen, limit=11)


@pytest.mark.parametrize("skip_invalid", [False, True])
def test_a_limit_does_not_shorten_a_shard(tmp_path: Path, skip_invalid: bool) -> None:
    image = units()
    if skip_invalid:
        image[2:] = 0
    save(tmp_path / "in/image.npy", image)
    chosen = settings(skip_invalid=skip_invalid)
    adopt(str(tmp_path / "in"), str(tmp_path / "out"), chosen)
    before = content(tmp_path / "out")
    with pytest.raises(FolderError, match=r"holds 20 rows in shard 0000, of which --limit 9 would leave 9; leave --li"):
        adopt(str(tmp_path / "in"), str(tmp_path / "out"), chosen, limit=9)
    with pytest.raises(FolderError, match="of which --limit 9 would leave 9"):
        plan_adopt(str(tmp_path / "in"), str(tmp_path / "out"), chosen, limit=9)
    assert content(tmp_path / "out") == before
    assert adopt(str(tmp_path / "in"), str(tmp_path / "out"), chosen, limit=ROWS).done_now == 0
    save(tmp_path / "in/image.npy", units(8))
    assert adopt(str(tmp_path / "in"), str(tmp_path / "out"), chosen).rows == 8


def test_remote_folders_are_read_and_written(tmp_path: Path) -> None:
    two_spaces(tmp_path / "in")
    chosen = settings(source="audio", target="image")
    adopt(str(tmp_path / "in"), str(tmp_path / "out"), chosen)
    fs = fsspec.filesystem("memory")
    fs.put(f"{tmp_path}/in/", "memory://adopted-in/", recursive=True)
    adopt("memory://adopted-in", "memory://adopted-out", chosen)
    for name in ("img_emb/img_emb_0001.npy", "metadata/metadata_0000.parquet"):
        assert fs.cat(f"memory://adopted-out/{name}") == (tmp_path / "out" / name).read_bytes()
    fs.rm("memory://adopted-in", recursive=True)
    fs.rm("memory://adopted-out", recursive=True)


def test_a_single_file_of_a_web_server_is_adopted_again_once_it_changes(tmp_path: Path) -> None:
    """The server answers ranges, but lists no folders."""
    stored = {"/image.npy": npy(units())}

    class Handler(QuietHandler):
        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, has_body: bool) -> None:
            body = stored.get(self.path)
            if body is None:
                self.send_error(404)
                return
            start, end = 0, len(body) - 1
            if (wanted := self.headers.get("Range")) is not None:
                low, _, high = wanted.removeprefix("bytes=").partition("-")
                start, end = int(low), min(int(high or end), end)
            self.send_response(200 if wanted is None else 206)
            if wanted is not None:
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(body)}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{hash(body)}"')
            self.send_header("Content-Length", str(end - start + 1))
            self.end_headers()
            if has_body:
                self.wfile.write(body[start : end + 1])

    with serving(Handler) as url:
        for done in (1, 0):
            assert adopt(f"{url}/image.npy", str(tmp_path / "out"), settings()).done_now == done
        stored["/image.npy"] = npy(units(seed=3))
        assert adopt(f"{url}/image.npy", str(tmp_path / "out"), settings()).done_now == 1
    np.testing.assert_allclose(np.load(tmp_path / "out/img_emb/img_emb_0000.npy"), units(seed=3), atol=1e-3)


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def test_a_clip_is_declared_without_loading_it(tmp_path: Path, tiny_clip: Path) -> None:
    for name, seed in (("img_emb", 0), ("text_emb", 1)):
        save(tmp_path / f"in/{name}/{name}_0.npy", units(ROWS, 16, seed))
    clip = ClipSettings(model=f"local-dir:{tiny_clip}")
    adopt(str(tmp_path / "in"), str(tmp_path / "out"), AdoptSettings(clip=clip))
    dataset = read_embeddings(str(tmp_path / "out"))
    assert dataset.clip["embed_dim"] == 16
    assert set(dataset.clip["source"]["files"]) == {"open_clip_config.json", "open_clip_model.safetensors"}
    assert dataset.clip_settings["model"] == f"local-dir:{tiny_clip}"
    assert dataset.spaces is None


def test_another_model_replaces_the_clip_of_a_run_that_wrote_nothing(tmp_path: Path, tiny_clip: Path) -> None:
    for name, seed in (("img_emb", 0), ("text_emb", 1)):
        save(tmp_path / f"in/{name}/{name}_0.npy", units(ROWS, 16, seed))
    save(tmp_path / "in/img_emb/img_emb_0.npy", np.zeros((ROWS, 16), np.float32))
    with pytest.raises(InputError, match="is all zeros"):
        adopt(
            str(tmp_path / "in"),
            str(tmp_path / "out"),
            AdoptSettings(clip=ClipSettings(model=f"local-dir:{tiny_clip}")),
        )
    save(tmp_path / "in/img_emb/img_emb_0.npy", units(ROWS, 16))
    adopt(str(tmp_path / "in"), str(tmp_path / "out"), settings())
    assert set(json.loads((tmp_path / "out/manifest.json").read_text())["about"]) == {"not_clip", "spaces"}
    assert read_embeddings(str(tmp_path / "out")).spaces is not None


def test_a_clip_of_another_size_or_direction_is_refused(tmp_path: Path, tiny_clip: Path) -> None:
    clip = ClipSettings(model=f"local-dir:{tiny_clip}")
    clip_retrieval(tmp_path / "in")
    with pytest.raises(InputError, match="makes embeddings of 16 values, those of img_emb have 6"):
        adopt(str(tmp_path / "in"), str(tmp_path / "out"), AdoptSettings(clip=clip))
    for name, seed in (("img_emb", 0), ("text_emb", 1)):
        save(tmp_path / f"fit/{name}/{name}_0.npy", units(ROWS, 16, seed))
    chosen = AdoptSettings(clip=clip, source="img_emb", target="text_emb")
    with pytest.raises(SettingsError, match="the source would be img_emb and the target text_emb"):
        adopt(str(tmp_path / "fit"), str(tmp_path / "out"), chosen)


@pytest.mark.parametrize(
    ("target", "values", "message"),
    [
        (None, {}, "name a folder to write to"),
        ("out", {"in_place": True}, "--in-place writes a manifest into"),
        ("in/out", {}, "is inside"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    target: str | None, values: dict[str, object], message: str, tmp_path: Path
) -> None:
    clip_retrieval(tmp_path / "in")
    with pytest.raises(PriorkitError, match=message):
        adopt(str(tmp_path / "in"), None if target is None else str(tmp_path / target), settings(**values))


def test_advice_without_a_source_names_captions_only_for_a_clip(tmp_path: Path, tiny_clip: Path) -> None:
    save(tmp_path / "in/image.npy", units(ROWS, 16))
    notes = adopt(str(tmp_path / "in"), str(tmp_path / "out"), settings()).notes
    assert "there is no source, so no prior can be trained: adopt again with --source" in notes
    with pytest.raises(InputError, match=r"stores no source embeddings; adopt again with --source") as error:
        read_embeddings(str(tmp_path / "out")).require(text_embed=True)
    assert "online" not in str(error.value)
    clip = AdoptSettings(clip=ClipSettings(model=f"local-dir:{tiny_clip}"))
    notes = adopt(str(tmp_path / "in"), str(tmp_path / "clip"), clip).notes
    assert any("train.text_condition=online" in note for note in notes)


def test_messages_have_at_most_three_lines(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        adopt(str(tmp_path), str(tmp_path / "out"), None)
    assert len(str(error.value).splitlines()) == 1
