"""Cut text towers compared with open_clip's whole towers, for every kind of tower."""

from __future__ import annotations

import functools
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CustomTextCLIP

from priorkit.pipeline.clip.text_tower import TextTower

VISION = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
END = 49407
CAPTIONS = ["a cat", "", "word " * 40, "一只猫 🐈", "a red square with a rather long description", "a", "two words"]
CONTEXT = 24

CAUSAL: dict[str, tuple[Any, dict[str, Any]]] = {
    "clip": (CLIP, {}),
    "custom": (CustomTextCLIP, {}),
    "custom with bias": (CustomTextCLIP, {"proj_bias": True}),
    "no projection": (CustomTextCLIP, {"proj_type": "none"}),
    "eos": (CustomTextCLIP, {"pool_type": "eos", "eos_id": END}),
}
OTHERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "siglip": (CustomTextCLIP, {"no_causal_mask": True, "pool_type": "last"}),
    "sees later tokens": (CustomTextCLIP, {"no_causal_mask": True}),
    "pools last": (CustomTextCLIP, {"pool_type": "last"}),
    "class token": (CustomTextCLIP, {"embed_cls": True, "pool_type": "last"}),
}


def model(kind: Any, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    text = {"context_length": CONTEXT, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2, **settings}
    made = kind(embed_dim=16, vision_cfg=VISION, text_cfg=text).eval()
    with torch.no_grad():  # random towers ignore positions almost; these do not
        for value in made.parameters():
            value.add_(torch.randn_like(value) * 0.05)
    return made


@functools.cache
def tokenizer() -> Any:
    return open_clip.SimpleTokenizer(context_length=CONTEXT)


def tokens(captions: list[str] = CAPTIONS) -> torch.Tensor:
    ids: torch.Tensor = tokenizer()(captions)
    return ids


def tower_of(made: Any, batch_size: int = 3) -> TextTower:
    tower = TextTower(made, torch.device("cpu"), batch_size)
    tower.probe(tokens(["word", "word word", "word word word word word"]))
    return tower


def whole(made: Any, captions: list[str] = CAPTIONS) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([made.encode_text(tokens([caption])) for caption in captions])


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_tower_is_cut_and_gives_the_same_embeddings(name: str, batch_size: int) -> None:
    made = model(*CAUSAL[name])
    tower = tower_of(made, batch_size)
    assert tower.is_cut
    torch.testing.assert_close(tower.encode(tokens()).text_embed, whole(made), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_other_towers_are_not_cut(name: str) -> None:
    made = model(*OTHERS[name])
    tower = tower_of(made)
    assert not tower.is_cut
    torch.testing.assert_close(tower.encode(tokens()).text_embed, whole(made), rtol=1e-5, atol=1e-5)


def test_cutting_changes_a_tower_that_sees_later_tokens() -> None:
    """Ensure that the tests above can fail."""
    made = model(*OTHERS["sees later tokens"])
    tower = tower_of(made)
    short = tokens(["a cat"])[:, :4]
    with torch.no_grad():
        cut = made.text.transformer(made.text.token_embedding(short) + made.text.positional_embedding[:4])
        full = made.text.transformer(made.text.token_embedding(tokens(["a cat"])) + made.text.positional_embedding)
    assert F.cosine_similarity(cut[0, 3], full[0, 3], dim=0) < 0.999
    assert not tower.is_cut


def test_batches_are_sorted_by_length_and_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model(*CAUSAL["clip"])
    tower = tower_of(made)
    shapes: list[tuple[int, int]] = []
    forward = made.transformer.forward

    def counted(x: torch.Tensor, **options: Any) -> torch.Tensor:
        shapes.append((x.shape[0], x.shape[1]))
        result: torch.Tensor = forward(x, **options)
        return result

    monkeypatch.setattr(made.transformer, "forward", counted)
    found = tower.encode(tokens())
    lengths = sorted((row == END).int().argmax().item() + 1 for row in tokens())
    assert shapes == [(3, lengths[2]), (3, lengths[5]), (1, lengths[6])]
    assert lengths[0] == 2
    assert lengths[6] == CONTEXT
    assert found.text_embed.shape == (7, 16)


@pytest.mark.parametrize("name", [*CAUSAL, "siglip", "sees later tokens", "pools last"])
def test_token_states_are_those_after_the_final_norm(name: str) -> None:
    made = model(*{**CAUSAL, **OTHERS}[name])
    tower = tower_of(made)
    outputs: list[torch.Tensor] = []
    norm = made.ln_final if hasattr(made, "ln_final") else made.text.ln_final
    found = tower.encode(tokens(), token_states=True)
    with norm.register_forward_hook(lambda module, inputs, output: outputs.append(output)):
        whole(made)
    assert tower.token_width == 16
    assert found.token_states is not None
    assert len(found.token_states) == sum(found.lengths)
    for states, expected, row in zip(found.token_states.split(found.lengths), outputs, tokens(), strict=True):
        end = (row == END).int().argmax().item() + 1
        if tower.ends_at_end_of_text:
            assert len(states) == end
        else:
            assert len(states) == CONTEXT
        torch.testing.assert_close(states, expected[0, : len(states)].detach(), rtol=1e-4, atol=1e-5)
    assert tower.encode(tokens()).token_states is None


def test_a_tower_that_normalises_only_its_embedding_has_no_token_states() -> None:
    assert tower_of(model(*OTHERS["class token"])).token_width is None


def test_a_tower_that_only_looks_causal_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model(*CAUSAL["clip"])
    forward = made.transformer.forward

    def leaking(x: torch.Tensor, **options: Any) -> torch.Tensor:
        result: torch.Tensor = forward(x, **options) + 5 * x.mean(dim=1, keepdim=True)
        return result

    monkeypatch.setattr(made.transformer, "forward", leaking)
    tower = tower_of(made)
    assert tower.ends_at_end_of_text
    assert not tower.is_cut
