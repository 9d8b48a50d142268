"""The package clip-retrieval beside current packages: how it is imported, and what is left behind afterwards."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from priorkit.pipeline.doctor.requirements import CLIP_RETRIEVAL
from priorkit.pipeline.embed.clip_retrieval_package import _stand_ins, import_package, require_package
from priorkit.pipeline.errors import PriorkitError

ROOT = Path(__file__).resolve().parents[4]
INSTALL = "pip install --no-deps clip-retrieval all-clip clip-anytorch"


@pytest.mark.parametrize("module", ["clip_retrieval", "all_clip", "clip"])
def test_a_missing_part_is_an_error_with_the_command_that_installs_all(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        PriorkitError, match=f"^embed.engine=clip-retrieval: No module named '{module}'; .*: {INSTALL}$"
    ):
        require_package()


def test_another_missing_package_is_named_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(PriorkitError, match=r"No module named 'webdataset'; install it: pip install \"webdataset\"$"):
        require_package()


def test_a_package_of_another_layout_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip_retrieval").mkdir()
    (tmp_path / "clip_retrieval/__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    import_package.cache_clear()
    with pytest.raises(PriorkitError, match=r"clip_inference/reader\.py.*install it: pip install --no-deps"):
        import_package()


def test_makefile_and_documentation_have_the_command() -> None:
    assert INSTALL.split()[3:] == list(CLIP_RETRIEVAL)
    assert (
        f"-m pip install --quiet --no-compile --no-deps {' '.join(CLIP_RETRIEVAL)}\n" in (ROOT / "Makefile").read_text()
    )
    assert f"\n{INSTALL}\n" in (ROOT / "docs/pages/embedding.md").read_text(encoding="utf-8")


def test_the_import_leaves_no_stand_in_behind_and_needs_no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"clip_retrieval", "sentence_transformers", "pkg_resources", "faiss", "autofaiss", "flask"}
    for module in list(sys.modules):
        if module.partition(".")[0] in names | {"all_clip", "clip"}:
            monkeypatch.delitem(sys.modules, module)
    import_package.cache_clear()
    package = import_package()
    assert "all_clip" in sys.modules
    assert names & set(sys.modules) == set()
    parts = (package.reader, package.mapper, package.writer)
    assert [part.__name__ for part in parts] == ["WebdatasetReader", "ClipMapper", "NumpyWriter"]


def test_real_modules_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    real = object()
    monkeypatch.setitem(sys.modules, "sentence_transformers", real)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "pkg_resources", raising=False)
    with _stand_ins():
        from sentence_transformers import SentenceTransformer

        assert SentenceTransformer is None
    assert sys.modules["sentence_transformers"] is real
    assert "pkg_resources" not in sys.modules


class Doubling(torch.nn.Module):
    """A model whose embeddings are known."""

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return 2 * pixels.flatten(1)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return 2.0 * tokens


def test_the_mapper_runs_the_given_model_and_all_clip_forgets_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    package = import_package()
    before = dict(package.all_clip._CLIP_REGISTRY)

    def preprocess(image: Image.Image) -> torch.Tensor:
        return torch.ones(3, 1, 1)

    def tokenizer(captions: list[str]) -> torch.Tensor:
        return torch.ones(len(captions), 4)

    mapper = package.build_mapper(Doubling(), preprocess, tokenizer, image=True, text=True)
    batch: dict[str, Any] = {
        "image_tensor": torch.tensor([[[[3.0]], [[0.0]], [[4.0]]]]), "image_filename": ["0"],
        "text_tokens": torch.tensor([[0.0, 0.0, 6.0, 8.0]]), "text": ["a"], "metadata": ["{}"],
    }  # fmt: skip
    made = mapper(batch)
    assert made["image_embs"].tolist() == [[pytest.approx(0.6, abs=1e-3), 0, pytest.approx(0.8, abs=1e-3)]]
    assert made["text_embs"].tolist() == [[0, 0, pytest.approx(0.6, abs=1e-3), pytest.approx(0.8, abs=1e-3)]]
    assert made["metadata"] == ["{}"]
    assert before == package.all_clip._CLIP_REGISTRY
    assert package.all_clip.load_clip.cache_info().currsize == 0
    assert package.all_clip.load_clip_without_warmup.cache_info().currsize == 0
    assert "warming up" in capsys.readouterr().out  # the caller redirects it


def test_installed_files_are_not_changed() -> None:
    """Files have the hashes that pip recorded."""
    import_package()
    for distribution in CLIP_RETRIEVAL:
        for file in importlib.metadata.files(distribution) or []:
            if file.suffix == ".py" and file.hash is not None:
                digest = hashlib.new(file.hash.mode, Path(str(file.locate())).read_bytes()).digest()
                assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value, file
