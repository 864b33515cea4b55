"""Seconds of expert dispatch and combine on one cluster: the fitted forms of its device (`hwprofiles.forms.dispatch`).

A token crosses the NIC once per remote scale-up domain that holds any of its k experts and is forwarded there over
NVLink, once per rank. Three things are not in a device's own table and are said in `notes`: kernels over several
domains were measured on the reference device only; a device without kernels takes the reference's; and HybridEP has no
published table.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hwprofiles.factors import Factors
from hwprofiles.forms.dispatch import Exchange, Parts, beside, dispatch_domains, dispatch_forms
from hwprofiles.measured import KernelTables

# Kernels without a table of their own on a device take those of this one.
REFERENCE = "h100"
LARGE_BYTES = 2.0**28  # a message long enough for the plateau of the rate


class DispatchCost:
    """Dispatch and combine kernels of one device; `notes` says what the answers so far rest on."""

    def __init__(self, tables: KernelTables, factors: Factors) -> None:
        self.tables = tables
        self.factors = factors
        self.notes: set[str] = set()
        links = tables.links or (tables.device,)
        folder = next((name for name in links if dispatch_forms(name)), tables.device)
        self._folder, self._own = folder, dispatch_forms(folder)
        self._rests_on = f"scaled from {folder}" if tables.scaled else "measured"
        self._reference = dispatch_forms(REFERENCE)

    def parts(self, x: Exchange, phase: str, *, mode: str = "normal", hybrid: bool = False) -> Parts:
        """Start-up and seconds per link of `x`; `phase`: dispatch or combine; zero where nobody else is there.

        mode: normal (throughput kernels; those of a rack where they were measured) or low_latency. hybrid: HybridEP.
        """
        several = np.any(np.asarray(x.domains) > 1)
        if mode == "normal" and ("rack", phase) in self._own:
            found = self._own["rack", phase].parts(x)
            self.notes.add(f"expert dispatch: {self._rests_on}")
            if several:
                found = self._beyond(x, phase, found)
        else:
            found = self._form(phase, mode, several=bool(several)).parts(x)
            if mode == "low_latency":
                self._note_tokens(x, phase)
        nvlink = np.minimum(found.nvlink_s, self._nccl_s(x)) if hybrid else found.nvlink_s
        others = np.asarray(x.ranks) > 1
        latency, nvlink, nic = (np.where(others, v, 0.0) for v in (found.latency_s, nvlink, found.nic_s))
        return Parts(latency_s=latency, nvlink_s=nvlink, nic_s=nic)

    def _form(self, phase: str, mode: str, *, several: bool) -> Any:
        form, far = self._own.get((mode, phase)), self._reference[mode, phase]
        self.notes.add(f"expert dispatch: {self._rests_on if form else f'borrowed from {REFERENCE}'}")
        form = form or far
        if several and form.across is None:
            self.notes.add(f"expert dispatch over several domains: borrowed from {REFERENCE}")
            form = replace(form, across=far.across)
        return form

    def _note_tokens(self, x: Exchange, phase: str) -> None:
        """Low-latency kernels were measured with the few tokens of a decoding step."""
        folder = self._folder if ("low_latency", phase) in self._own else REFERENCE
        most = dispatch_domains(folder)["low_latency", phase]["tokens"][1]
        if np.any(np.asarray(x.tokens) > most):
            self.notes.add(f"expert dispatch, low latency, of more than {most:.0f} tokens: extrapolated")

    def _beyond(self, x: Exchange, phase: str, inside: Parts) -> Parts:
        """A rack's NVLink kernel inside each domain, the NIC and start-up of the reference between them."""
        self.notes.add(f"expert dispatch over several domains: borrowed from {REFERENCE}")
        far = self._reference["normal", phase].across
        latency = np.where(np.asarray(x.domains) > 1, far.latency_s(x), inside.latency_s)
        nvlink, nic = beside(far.sharpness, inside.nvlink_s, far.nic_s(x))
        return Parts(latency_s=latency, nvlink_s=nvlink, nic_s=nic)

    def _nccl_s(self, x: Exchange) -> Any:
        """The same bytes at the rate of NCCL's all-to-all in a domain: HybridEP is taken to be no slower (assumed)."""
        self.notes.add("expert dispatch of HybridEP: assumed no slower than NCCL's all-to-all")
        n = np.maximum(x.local, 2.0)
        large_s, _ = self.tables.collective_s("alltoall", n, LARGE_BYTES)
        rate = LARGE_BYTES * (n - 1.0) / n / np.asarray(large_s) * x.nvlink_scale
        return x.received * x.rank_hits * (x.local - 1.0) / x.local * x.token_bytes / rate
