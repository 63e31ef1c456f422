"""What a model takes before it is loaded: weights, KV cache, compute buffers, and what fits.

Pure arithmetic on GGUF headers. The rules are those of the llama.cpp that the pinned
llama-cpp-python vendors; `tests/llama/test_plan_against_reality.py` compares them with what it
allocates.
"""

from server.catalog.plan.choosing import Choice, choose, gib
from server.catalog.plan.context import RopeWish, check_context, check_experts
from server.catalog.plan.measured import Allocated, Difference, compare, describe
from server.catalog.plan.memory import Memory
from server.catalog.plan.planning import plan
from server.catalog.plan.plans import Plan
from server.catalog.plan.reading import read_shape
from server.catalog.plan.shape import ModelShape
from server.catalog.plan.table import layer_plans, render, slot_table, verdict
from server.catalog.plan.weights import repacked_types
from server.catalog.plan.wishes import DraftWish, Wishes

__all__ = [
    "Allocated",
    "Choice",
    "Difference",
    "DraftWish",
    "Memory",
    "ModelShape",
    "Plan",
    "RopeWish",
    "Wishes",
    "check_context",
    "check_experts",
    "choose",
    "compare",
    "describe",
    "gib",
    "layer_plans",
    "plan",
    "read_shape",
    "render",
    "repacked_types",
    "slot_table",
    "verdict",
]
