"""The pipelines of a table of plans as arrays of integers, each worked out once.

What `sim.build.forms` counts depends on the model, the layers with loads of their own and the shape of the pipeline,
not on where ranks lie or what the software does: the screenings of one question under several rank maps, and of its
variants, share them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hwprofiles.errors import UserError
from sim.build.context import Context
from sim.build.forms import Form, Ints, Layout, layout_of, plain_form
from sim.build.forms_split import split_form
from sim.build.order import SPLIT_SCHEDULES, placement
from sim.build.stages import StageContent
from sim.cost.levels import KnownLoads
from sim.cost.prices import PartPrices, Setting
from sim.cost.stage_prices import StagePrices
from sim.model import ModelSpec
from sim.routing import Routing
from sim.routing.layers import own_loads
from sim.workload import Workload

LayoutKey = tuple[int, int, bool, str]
FormKey = tuple[int, str, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayoutForms:
    """A layout and the forms of its pipelines met so far, by micro-batches, schedule and group; None: cannot be run."""

    key: LayoutKey
    layout: Layout
    forms: dict[FormKey, Form | None]

    @cached_property
    def contents(self) -> tuple[StageContent, ...]:
        """Its contents in order of their numbers."""
        return tuple(self.layout.distinct)

    @cached_property
    def stages(self) -> Ints:
        """The kept stages."""
        return np.array(self.layout.kept)

    @cached_property
    def buckets(self) -> Ints:
        """`Layout.buckets` of each kept stage."""
        return np.array([self.layout.buckets(stage) for stage in self.layout.kept])

    @cached_property
    def first(self) -> Ints:
        """The content of chunk 0 of each kept stage."""
        found: Ints = self.layout.own[0]
        return found

    def form(self, m: int, schedule: str, group: int) -> Form | None:
        """The form of m micro-batches."""
        key = (m, schedule, group)
        if key not in self.forms:
            found = None
            if m >= 1 and schedule in SPLIT_SCHEDULES:
                found = split_form(self.layout, schedule, m)
            elif m >= 1:
                found = plain_form(self.layout, schedule, m, group)
            self.forms[key] = found
        return self.forms[key]


class Pipelines:
    """Layouts of every (pp, vpp) met so far, and what else the screenings of one model, workload and routing share.

    met: settings that were asked for, by the fields that make one (`sim.cost.prices`). parts: prices of parts, by all
    that they depend on; stages: of virtual stages, by those and their contents.
    """

    def __init__(self, model: ModelSpec, workload: Workload, routing: Routing) -> None:
        self.model, self.workload = model, workload
        self.met: dict[tuple[str, ...], dict[Setting, Setting]] = {}
        self.parts: dict[tuple[Any, ...], PartPrices] = {}
        self.stages: dict[tuple[int, int, tuple[StageContent, ...]], StagePrices] = {}
        self._loads: dict[tuple[bytes, bytes, float | None], KnownLoads] = {}
        self.own: Mapping[int, int] = own_loads(model, routing)
        self._layouts: dict[LayoutKey, LayoutForms | None] = {}

    def loads(self, ctx: Context) -> KnownLoads:
        """What the routing says of the plans of a context, whatever is recomputed and wherever ranks lie."""
        tokens = np.asarray(ctx.group_tokens, float)
        key = (np.asarray(ctx.plan.ep).tobytes(), tokens.tobytes(), ctx.software.capacity_factor)
        return self._loads.setdefault(key, KnownLoads())

    def layout(self, pp: int, vpp: int, *, account_ends: bool, schedule: str) -> LayoutForms | None:
        """The virtual stages; None where the layers cannot be laid out."""
        key = (pp, vpp, account_ends, placement(schedule) if schedule in SPLIT_SCHEDULES else "")
        if key not in self._layouts:
            mtp = self.workload.with_mtp and self.model.mtp_layers > 0
            try:
                layout = layout_of(
                    self.model, pp, vpp, account_ends=account_ends, mtp=mtp, own=self.own, schedule=schedule
                )
            except UserError:
                self._layouts[key] = None
            else:
                self._layouts[key] = LayoutForms(key=key, layout=layout, forms={})
        return self._layouts[key]
