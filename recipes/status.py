"""Status of a recipe's stages: the content of each stage's folder, and whether the stage is up to date."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..pipeline.contract.manifest import damaged_shards, read_manifest
from ..pipeline.contract.storage import Store
from ..pipeline.errors import PriorkitError
from .chain import PlannedStage, plan
from .recipe import STAGES, Recipe, StageName


@dataclass(frozen=True)
class StageState:
    """Status of one stage, as shown by `priorkit status`."""

    stage: str
    folder: str
    shards: int
    rows: int
    state: str
    """Text for display: `not started`, `up to date`, the amount of remaining work, or an error message.

    If the folder was not compared with a recipe, `there` means that it contains at least one complete shard, and
    `unfinished` means that it contains a manifest but no complete shard. A finished prior or evaluation counts as a
    complete shard.
    """

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dictionary that can be written as JSON."""
        return asdict(self)


def stage_states(recipe: Recipe, *, plan_too: bool) -> list[StageState]:
    """Return the status of every stage, in the order in which the stages run.

    If the folders are compared with the recipe, the stages before the recipe's first stage are left out.

    Args:
        recipe: recipe that names the stages' folders.
        plan_too: True to also compare the folders with the recipe's URL list and settings; False to report only the
            content of the folders.
    """
    planned = {stage.name: stage for stage in plan(recipe)} if plan_too else {}
    folders = recipe.folders
    places = (folders.images, folders.embeddings, folders.prior, folders.evaluation)
    first = STAGES.index(recipe.first_stage) if plan_too else 0
    stages = list(zip(STAGES, places, strict=True))[first:]
    return [_stage_state(stage, folder, planned.get(stage)) for stage, folder in stages]


def _stage_state(stage: StageName, folder: str, planned: PlannedStage | None) -> StageState:
    """Return the status of one stage, from the content of its folder and, if given, its plan.

    Args:
        stage: name of the stage.
        folder: output folder of the stage. It need not exist.
        planned: result of planning the stage with the recipe; None to report only the content of the folder.
    """
    try:
        store = Store(folder)
        manifest = read_manifest(store)
        damaged = len(damaged_shards(store, manifest)) if manifest else 0
    except PriorkitError as error:
        return StageState(stage, folder, 0, 0, str(error))
    if planned is not None and planned.plan is not None:
        done = planned.plan.pending_units == 0 and not damaged
        left = f"{planned.plan.pending_units:,} of {planned.plan.units:,} {planned.plan.unit} to do"
        state = "up to date" if done else left
    elif manifest is None:
        state = "not started"
    elif planned is not None:
        state = planned.problem
    else:
        state = "there" if manifest.shards else "unfinished"
    if damaged:
        state += f"; {damaged:,} shards lack files and will be done again"
    shards = len(manifest.shards) if manifest else 0
    rows = manifest.rows if manifest else 0
    return StageState(stage, store.url, shards, rows, state)
