"""Draft models: held against the models that they draft for, and how llama.cpp is to load them."""

from __future__ import annotations

import logging

from server.assembly.grouping import Group
from server.catalog.drafts import check_draft, draft_warnings
from server.catalog.gguf import GgufHeader, check_parts
from server.catalog.plan import ModelShape, Plan, read_shape
from server.core.errors import ConfigError
from server.llama.params import DraftParams
from server.settings.relations import draft_conflict

log = logging.getLogger(__name__)


def checked_draft(group: Group, main: GgufHeader, shape: ModelShape) -> ModelShape | None:
    """Return the draft model's shape, None without one; `main`, `shape`: of the model.

    Raises `ConfigError` and `ModelFileError` for what cannot work, whatever the memory.
    """
    path = group.model.draft
    if path is None:
        return None
    if conflict := draft_conflict(group.engine):
        raise ConfigError(f"draft {conflict.message}.")
    parts = check_parts(path)
    draft = read_shape(parts)
    check_draft(main, parts[0], (shape, draft))
    return draft


def draft_params(group: Group, plan: Plan) -> DraftParams | None:
    """Map the plan of a group's draft model to what is loaded; None without one."""
    path, draft = group.model.draft, plan.draft
    if path is None or draft is None:
        return None
    return DraftParams(
        path=path,
        n_gpu_layers="all" if draft.n_gpu_layers else 0,
        kv_type="q8_0" if draft.kv_type == "q8_0" else "f16",
        flash_attention="on" if draft.flash_attention else "off",
        layout="split" if draft.kv_layout == "split" else "unified",
    )


def warn_of_draft(group: Group, shape: ModelShape, draft: ModelShape | None, plan: Plan) -> None:
    """Log why drafts may not pay."""
    if draft is None or plan.draft is None:
        return
    told = list(draft_warnings(shape, draft, plan.n_ctx))
    if plan.n_gpu_layers and not plan.draft.n_gpu_layers:
        told.append(
            f"{draft.path} is in system memory, as the GPU has no room for it, and hardly pays there: lower slots "
            "or n_ctx, or leave draft out"
        )
    for text in told:
        log.warning("%s: %s", group.name, text)
