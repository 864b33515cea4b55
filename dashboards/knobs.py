"""The knobs beside every view: each writes the URL when it is turned, and shows what the URL says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, get_args

import streamlit as st

from dashboards import frame, uploads
from dashboards.opened import SHOWN, asked_of_file, plan_file
from dashboards.state import LAYOUT, START, Knobs, knobs_of_study, names, study_text
from hwprofiles.errors import UserError
from planner.question.asked import Asked, Option, options_of

_DEFAULT = "default"
_LABELS = {"micro_batch": "Micro-batch", "zero": "ZeRO"}  # other degrees go by their letters
_NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_TIMES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
_DEGREES = tuple(str(2**i) for i in range(11))
_ROUTINGS = ("balanced", "uniform", "zipf:0.3", "zipf:0.6", "zipf:1.0", "lognormal:0.4", "dirichlet:50",
             "like:mixtral-8x7b")  # fmt: skip
# Rates and sizes of a machine that have a slider: (field of the cluster or device, words, unit, factor to the unit).
_MACHINE = (
    ("device.mem_bytes", "Memory per GPU", "GiB", 2.0**-30),
    ("device.mem_bytes_per_s", "Memory bandwidth", "GB/s", 1e-9),
    ("cluster.scale_up.bytes_per_s", "Scale-up link (NVLink) per GPU", "GB/s", 1e-9),
    ("cluster.scale_out.bytes_per_s", "Scale-out link (NIC) per GPU", "GB/s", 1e-9),
)


def sidebar(page: frame.Page) -> None:
    """All knobs of the scenario."""
    with st.sidebar:
        st.markdown("### :material/hub: Moecast")
        _question(page.knobs)
        with st.expander("Layout", expanded=True):
            _layout(page.knobs)
        with st.expander("Routing and placement"):
            _routing(page.knobs)
        with st.expander("Another machine"):
            _machine(page.knobs)
        with st.expander("Techniques and trainer"):
            _techniques(page.knobs)
        with st.expander("Scenario: baseline, save, load"):
            _scenario(page)


def _question(knobs: Knobs) -> None:
    _pick(knobs, "model", names("model"), file="model")
    # another machine has other rates and another usual release
    _pick(knobs, "cluster", names("cluster"), file="cluster", resets=("software", "cluster.", "device.", "gpus"))
    _gpus(knobs)
    left, right = st.columns(2)
    with left:
        _pick(knobs, "seq_len", ("2048", "4096", "8192", "16384", "32768", "131072"), free=True, default="4096")
    with right:
        _pick(knobs, "global_batch", ("128", "256", "512", "1024", "2048", "4096", "15360"), free=True, default="1024")
    from sim.workload import Precision

    _pick(knobs, "precision", get_args(Precision), default="bf16")


def _gpus(knobs: Knobs) -> None:
    """Number of nodes, as the GPUs they make."""
    from hwprofiles import catalogue

    with suppress(UserError):  # the view tells it
        case = Knobs.of({"cluster": knobs.get("cluster", START["cluster"])}).case()
        machine = catalogue.cluster(case["cluster"])
        per_node, own = machine.devices_per_node, machine.num_devices
        text = knobs.get("gpus", str(own))
        now = int(text) if text.isdecimal() else own
        sizes = sorted({now, own, *(n * per_node for n in _NODES)})
        key = _key("gpus")
        st.session_state[key] = now
        st.select_slider(
            "Nodes" if per_node > 1 else "Devices", sizes, key=key, on_change=_turned("gpus", str),
            format_func=lambda n: f"{n // per_node:,} × {per_node} = {n:,} GPUs" if n >= per_node else f"{n} GPUs",
        )  # fmt: skip


def _layout(knobs: Knobs) -> None:
    if "plan" in st.session_state["pages"] and st.button(
        "Let the planner choose", icon=":material/auto_awesome:", help="Search on the Plan view.", width="stretch"
    ):
        st.session_state["search"] = True
        st.switch_page(st.session_state["pages"]["plan"], query_params=frame.query_here())
    names_of = ("tp", "pp", "ep", "cp", "vpp", "etp", "micro_batch", "zero")
    for row in (names_of[:3], names_of[3:6], names_of[6:]):
        for column, name in zip(st.columns(len(row)), row, strict=True):
            with column:
                values = ("0", "1", "2", "3") if name == "zero" else _DEGREES
                usual = usual_vpp(knobs) if name == "vpp" else "1"
                _pick(knobs, name, values, label=_LABELS.get(name, name.upper()), free=True, default=usual)
    from planner.rules.layout import SCHEDULES

    _pick(knobs, "schedule", SCHEDULES, default=usual_schedule(knobs))
    _pick(knobs, "recompute", ("none", "core_attn", "moe_act", "layernorm,moe_act", "full"), free=True, default="none")


def usual_schedule(knobs: Knobs) -> str:
    """The schedule of a scenario that names none: that of its virtual stages."""
    text = knobs.get("vpp", "1")
    return "interleaved" if text.isdecimal() and int(text) > 1 else "1f1b"


def usual_vpp(knobs: Knobs) -> str:
    """Virtual stages of a scenario that names none: two where the schedule runs down the stages and up again."""
    from sim.build.order import V_SHAPED

    return "2" if knobs.get("schedule") in V_SHAPED else "1"


def _routing(knobs: Knobs) -> None:
    _pick(knobs, "routing", _ROUTINGS, free=True, file="routing", default="balanced")
    placed = knobs.get("placement")
    _pick(knobs, "placement", ("auto",), file="placement", default=_DEFAULT, label="Placement of experts")
    if placed and knobs.get("routing", "balanced") == "balanced":
        st.caption("A placement changes nothing under balanced routing; choose a law or upload counts.")


def _machine(knobs: Knobs) -> None:
    """Sliders around what the preset says."""
    from hwprofiles import catalogue

    with suppress(UserError):  # the view tells it
        case = Knobs.of({k: v for k, v in knobs.values.items() if k in ("cluster", "gpus")}).case()
        if "cluster" not in case:
            return
        gpus = case.get("gpus", "")
        machine = catalogue.cluster(case["cluster"], gpus=int(gpus) if gpus.isdecimal() else None)
        device = catalogue.device_of(machine)
        own = {
            "device.mem_bytes": device.mem_bytes, "device.mem_bytes_per_s": device.mem_bytes_per_s,
            "cluster.scale_up.bytes_per_s": machine.scale_up.bytes_per_s,
            "cluster.scale_out.bytes_per_s": machine.scale_out.bytes_per_s,
        }  # fmt: skip
        for name, words, unit, factor in _MACHINE:
            said = knobs.get(name)
            now = _number(said) / own[name] if _number(said) and own[name] else 1.0
            key = _key(name)
            st.session_state[key] = now
            st.select_slider(
                words, sorted({*_TIMES, now}), key=key, on_change=_turned(name, _times(own[name])),
                format_func=_rate_text(own[name] * factor, unit),
            )  # fmt: skip


def _number(text: str) -> float:
    """A positive number of the URL, 0 for anything else: its error is the question's to tell."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0.0 < value < math.inf else 0.0


def _times(own: float) -> Callable[[Any], str | None]:
    return lambda times: None if times == 1.0 else repr(own * times)


def _rate_text(own: float, unit: str) -> Callable[[float], str]:
    return lambda times: f"{own * times:,.4g} {unit}" + ("" if times == 1.0 else f" (× {times:g})")


def _techniques(knobs: Knobs) -> None:
    from planner.rules import TARGETS

    _pick(knobs, "software", names("software"), file="software", default=_DEFAULT)
    _pick(knobs, "target", tuple(TARGETS), default="megatron-lm")
    for name, some in {
        "optimizer": ("adam", "adam:exp_avg=bf16,exp_avg_sq=bf16", "muon", "sgd"),
        "offload": ("optimizer=0.5,overlap", "optimizer,overlap", "layers=4", "modules=core_attn+moe_act"),
        "lora": ("16", "64"),
        "lengths": ("lognormal:800:1.2", "fixed:1024"),
        "micro_batch_group": _DEGREES,
        "rank_order": ("tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp"),
        "seed": ("0", "1", "2", "3"),
    }.items():
        _pick(knobs, name, some, free=True, default=_DEFAULT, file="lengths" if name == "lengths" else "")


def _scenario(page: frame.Page) -> None:
    """Pin, save, load, start anew."""
    if st.button("Pin as baseline", icon=":material/keep:", width="stretch"):
        frame.pin(page.knobs)
        st.rerun()
    if page.baseline is not None:
        st.caption(frame.plain(f"Baseline: {page.baseline.label()}"))
        if st.button("Unpin the baseline", icon=":material/keep_off:", width="stretch"):
            frame.pin(None)
            st.rerun()
        if st.button("Go back to the baseline", icon=":material/undo:", width="stretch"):
            frame.write_query(page.baseline)
            st.rerun()
    with suppress(UserError):  # the view tells it
        frame.download("Save scenario", study_text(page.knobs), "scenario.toml", "application/toml", "save-scenario")
    found = st.file_uploader(
        "Load a scenario, a study (its first case) or a plan file", max_upload_size=uploads.MAX_FILE_BYTES // 2**20,
        type=[*uploads.KINDS["scenario"], *uploads.KINDS["plan"]],
    )  # fmt: skip
    if found is not None and st.session_state.get("loaded") != found.file_id:
        with frame.guard():
            loaded = _loaded(found.name, found.getvalue())
            st.session_state["loaded"] = found.file_id
            frame.write_query(loaded)
            st.rerun()
    if st.button("Start anew", icon=":material/restart_alt:", width="stretch"):
        frame.write_query(Knobs.of(START))
        st.rerun()


def _loaded(name: str, data: bytes) -> Knobs:
    """The scenario of a file; a plan file is also what the Plan view shows until it searches. Raises UserError."""
    if not uploads.safe_name(name).endswith(uploads.KINDS["plan"]):
        return knobs_of_study(data)
    answer = plan_file(uploads.add("plan", name, data))
    st.session_state[SHOWN] = (None, answer)
    return asked_of_file(answer)


def _pick(
    knobs: Knobs,
    name: str,
    values: Sequence[str],
    *,
    default: str = "",
    free: bool = False,
    file: str = "",
    label: str = "",
    resets: Sequence[str] = (),
) -> None:
    """A list of values of one option, typed ones too with `free`, uploads too with `file` (a kind of `uploads`)."""
    option = _options()[name]
    now = knobs.get(name) or default or START.get(name, "")
    shown = list(dict.fromkeys([*([default] if default else []), *values, now]))
    key = _key(name)
    st.session_state[key] = now
    words = label or option.name.removeprefix("--").replace("-", " ").capitalize()
    st.selectbox(
        words, shown, key=key, accept_new_options=free, help=option.text, format_func=_shown(words),
        on_change=_turned(name, lambda value: None if value in (default, None) else str(value), resets),
    )  # fmt: skip
    if file:
        _upload(name, file, resets)


@cache
def _options() -> Mapping[str, Option]:
    """The words of every knob, worked out once."""
    return options_of(Asked)


def _upload(name: str, kind: str, resets: Sequence[str]) -> None:
    endings = " or ".join(f".{e}" for e in uploads.KINDS[kind])
    with st.popover(f"Upload a {name} ({endings})", type="tertiary"):
        found = st.file_uploader(f"A {name} of your own", type=list(uploads.KINDS[kind]), key=f"file-{name}",
                                 max_upload_size=uploads.MAX_FILE_BYTES // 2**20)  # fmt: skip
        if found is not None and st.session_state.get(f"taken-{name}") != found.file_id:
            with frame.guard():
                token = uploads.add(kind, found.name, found.getvalue())
                st.session_state[f"taken-{name}"] = found.file_id
                _write(name, token, resets)
                st.rerun()


def _shown(_: str) -> Callable[[str], str]:
    return uploads.shown


def _key(name: str) -> str:
    return f"knob-{name}"


def _turned(name: str, text: Callable[[Any], str | None], resets: Sequence[str] = ()) -> Callable[[], None]:
    """What a widget does when it is turned: write the URL."""
    return lambda: _write(name, text(st.session_state[_key(name)]), resets)


def _write(name: str, text: str | None, resets: Sequence[str]) -> None:
    knobs = frame.read_page().knobs
    gone: Mapping[str, str | None] = {
        k: None for k in knobs.values for r in resets if k == r or (r.endswith(".") and k.startswith(r))
    }  # fmt: skip
    frame.write_query(knobs.with_({**gone, name: text}))


def has_layout(knobs: Knobs) -> bool:
    """Whether any degree of the plan is set."""
    return any(knobs.get(name) for name in LAYOUT)


def stated(error: UserError) -> str:
    """The first problem, for a title."""
    return error.problems[0] if error.problems else ""
