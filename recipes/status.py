"""Where a recipe's stages stand: what each folder holds, and whether it is up to date."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..pipeline.compute.stage import StagePlan
from ..pipeline.contract.manifest import damaged_shards, read_manifest
from ..pipeline.contract.storage import Store
from ..pipeline.errors import PriorkitError
from .chain import STAGES, StageName, plan
from .recipe import Recipe


@dataclass(frozen=True)
class StageState:
    """One stage of a recipe."""

    stage: str
    folder: str
    shards: int
    rows: int
    state: str
    """A few words: not started, what is there, what is to do, or what is wrong."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def stage_states(recipe: Recipe, *, plan_too: bool) -> list[StageState]:
    """The state of every stage.

    Args:
        plan_too: hold the folders against the recipe's list and settings, rather than only look at what is there.
    """
    plans: dict[str, StagePlan | str] = {}
    if plan_too:
        for item in plan(recipe):
            if isinstance(item, StagePlan):
                plans[item.stage] = item
            else:
                plans[item[0]] = item[1]
    folders = (recipe.folders.images, recipe.folders.embeddings, recipe.folders.prior, recipe.folders.evaluation)
    return [_state(stage, folder, plans.get(stage)) for stage, folder in zip(STAGES, folders, strict=True)]


def _state(stage: StageName, folder: str, planned: StagePlan | str | None) -> StageState:
    try:
        store = Store(folder)
        manifest = read_manifest(store)
        damaged = len(damaged_shards(store, manifest)) if manifest else 0
    except PriorkitError as error:
        return StageState(stage, folder, 0, 0, str(error))
    shards = len(manifest.shards) if manifest else 0
    rows = manifest.rows if manifest else 0
    if isinstance(planned, StagePlan):
        done = planned.pending_units == 0 and not damaged
        left = f"{planned.pending_units:,} of {planned.units:,} {planned.unit} to do"
        state = "up to date" if done else left
    elif planned is not None and manifest is not None:
        state = planned
    else:
        state = "not started" if manifest is None else "unfinished" if not manifest.shards else "there"
    if damaged:
        state += f"; {damaged:,} shards lack files and will be done again"
    return StageState(stage, store.url, shards, rows, state)
