"""What a lazy result would do: the number of its tasks, and the plan of one of them."""

from __future__ import annotations

from typing import Any

from xpconv.chunks.graph import ChunkLayer, Lifted
from xpconv.chunks.work import spec_of
from xpconv.dispatch import agnostic_engine, chunk_of, engine_for
from xpconv.plan import Arrays, Plan
from xpconv.spec import Array


def told(operation: str, result: Array, arrays: Arrays, options: dict[str, Any]) -> Plan:
    """The plan of the middle one of the result's chunks, and how many tasks there are beside those of the arrays."""
    bases = [a.base if isinstance(a, Lifted) else a for a in arrays if a is not None]
    given = {name for base in bases for name in base.dask.layers}
    added = [layer for name, layer in result.dask.layers.items() if name not in given]
    engine = engine_for(type(chunk_of(bases[0])))  # type: ignore[arg-type]  # mypy: a type may be unhashable
    plan = next((plan for layer in added if (plan := _plan_of(layer, operation, engine, arrays, options))), None)
    if plan is None:
        engine = agnostic_engine()
        plan = engine.plan(operation, arrays, None, options)
    tasks = f"{sum(map(len, added)):,} tasks for {result.npartitions:,} chunks of the result"
    name = engine.__name__.rpartition(".")[2]
    return Plan(plan.method, f"{plan.reason}, on the {name} engine: {tasks}", plan.tile, plan.workspace)


def _plan_of(layer: Any, operation: str, engine: Any, arrays: Arrays, options: dict[str, Any]) -> Plan | None:
    """The plan of a layer's middle task, if it makes a call of the operation."""
    if not isinstance(layer, ChunkLayer):
        return None
    spec = spec_of(layer.work, tuple(table[len(table) // 2] for table in layer.facts))
    if spec is None or not hasattr(engine, operation):
        return None
    metas = tuple(None if a is None else a._meta for a in arrays)
    return engine.plan(operation, metas, spec, options)
