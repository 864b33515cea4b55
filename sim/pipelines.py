"""The pipelines of a table of plans as lists of integers, each worked out once.

What `sim.build.forms` counts depends on the model, the layers with loads of their own and the shape of the pipeline,
not on where ranks lie: the screenings of one question under several rank maps share them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hwprofiles.errors import UserError
from sim.build.forms import Layout, StageForm, layout_of, stage_forms
from sim.build.forms_split import split_forms
from sim.build.order import SPLIT_SCHEDULES
from sim.build.ragged import Lists
from sim.build.stages import StageContent
from sim.columns import Columns
from sim.cost import prices as at
from sim.model import ModelSpec
from sim.routing import Routing
from sim.routing.layers import own_loads
from sim.workload import Workload


class Pipelines:
    """Lists of every pipeline met so far. contents: the number of each content of a virtual stage in them."""

    def __init__(self, model: ModelSpec, workload: Workload, routing: Routing) -> None:
        self.model, self.workload = model, workload
        self.own: Mapping[int, int] = own_loads(model, routing)
        self.contents: dict[StageContent, int] = {}
        self._layouts: dict[tuple[int, int, bool, str], Layout | None] = {}
        self._lists: dict[tuple[int, int, int, bool, str, int], Lists | None] = {}

    def lists_of(self, part: Columns, row: int, m: int) -> Lists | None:
        """The forms of one row's pipeline; None where its layers or micro-batches cannot be laid out."""
        pp, vpp = int(part.pp[row]), int(part.vpp[row])
        key = (pp, vpp, m, part.account_ends, part.schedule, part.micro_batch_group)
        if key not in self._lists:
            layout = self._layout(pp, vpp, part.account_ends, part.schedule)
            make = split_forms if part.schedule in SPLIT_SCHEDULES else stage_forms
            forms = None if layout is None or m < 1 else make(layout, part.schedule, m, part.micro_batch_group)
            self._lists[key] = None if forms is None or layout is None else self._flat(layout, forms)
        return self._lists[key]

    def _layout(self, pp: int, vpp: int, account_ends: bool, schedule: str) -> Layout | None:
        schedule = schedule if schedule in SPLIT_SCHEDULES else ""  # the others lay stages out alike
        key = (pp, vpp, account_ends, schedule)
        if key not in self._layouts:
            mtp = self.workload.with_mtp and self.model.mtp_layers > 0
            try:
                self._layouts[key] = layout_of(
                    self.model, pp, vpp, account_ends=account_ends, mtp=mtp, own=self.own, schedule=schedule
                )
            except UserError:
                self._layouts[key] = None
        return self._layouts[key]

    def _id(self, content: StageContent) -> int:
        return self.contents.setdefault(content, len(self.contents))

    def _flat(self, layout: Layout, forms: Sequence[StageForm]) -> Lists:
        """Forms as arrays; contents by their number in `contents`."""
        terms = [t for form in forms for t in form.terms]
        moments = [(i, moment) for i, form in enumerate(forms) for moment in form.peaks]
        first = [self._id(layout.contents[f.stage][0]) for f in forms]
        stages = [(f.stage, f.buckets, f.activations, f.gradients, i) for f, i in zip(forms, first, strict=True)]
        counts = [(t.fill, t.drain, t.forward, t.backward, t.paired_forward, t.paired_backward) for t in terms]
        rows = (at.SAVED, at.DEFERRED, at.LARGER)
        entries = [
            [(self._id(c), n, row) for row, of in zip(rows, (m.held, m.deferred, m.either), strict=True) for c, n in of]
            for _, m in moments
        ]
        held = np.array([entry for each in entries for entry in each], dtype=np.int64).T
        return Lists(
            stages=np.array(stages, dtype=np.int64).T,
            terms=np.array(counts, dtype=np.int64).T,
            term_content=np.array([self._id(t.content) for t in terms], dtype=np.int64),
            opens_term=np.array([i == 0 for form in forms for i in range(len(form.terms))]),
            moments=np.array([(i, self._id(moment.running)) for i, moment in moments], dtype=np.int64).T,
            held=held[:2],
            held_as=held[2],
            late=np.array([t.drain_wgrad for t in terms], dtype=np.int64),
            opens_held=np.array([i == 0 for each in entries for i in range(len(each))]),
        )
