"""A visitor of the dashboard without a browser: Streamlit's websocket and its messages, nothing drawn.

Twenty browsers measure the machine they run on; twenty of these measure the server. A visitor opens views, turns knobs
that are lists, and follows progress of jobs as the page in a browser does.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any

PATIENCE_S = 240.0
MAX_MESSAGE_BYTES = 2**28
WENT_WRONG = "went wrong"  # of the page's words for a defect of ours


class Visitor:
    """One session. elements: what the last run drew, by its place; query: of the address; errors: what went wrong.

    first_s: from sending the last question until the first figure or table, as a person sees it; done_s: until the
    server had drawn everything. In seconds.
    """

    def __init__(self, address: str, query: str = "", *, dark: bool = False) -> None:
        from websockets.sync.client import connect
        from websockets.typing import Subprotocol

        self.query = query
        self.errors: list[str] = []
        self.elements: dict[tuple[int, ...], Any] = {}
        self.first_s = self.done_s = 0.0
        self._page, self._hash, self._dark = "", "", dark
        self._widgets: dict[str, Any] = {}
        self._timers: dict[str, float] = {}
        self._fresh: set[tuple[int, ...]] = set()
        self._set: dict[str, float] = {}
        self._stack = ExitStack()
        self._socket = self._stack.enter_context(
            connect(
                address.replace("http://", "ws://") + "/_stcore/stream", subprotocols=[Subprotocol("streamlit")],
                max_size=MAX_MESSAGE_BYTES, open_timeout=PATIENCE_S, ping_timeout=None,
            )
        )  # fmt: skip

    def __enter__(self) -> Visitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def open(self, view: str = "", query: str | None = None) -> None:
        """Go to a view ("" is the first) with the query of the address as it is, or another."""
        self._page, self._hash, self._widgets, self._timers = view, "", {}, {}
        self.query = self.query if query is None else query
        self._ask()

    def turn(self, label: str, text: str) -> None:
        """Choose a value of a knob that is a list."""
        box = next(
            e.selectbox for e in self.elements.values() if e.HasField("selectbox") and e.selectbox.label == label
        )
        self._widgets = {box.id: ("string_value", text)}
        self._ask()

    def press(self, label: str) -> None:
        """Press a button."""
        button = next(e.button for e in self.elements.values() if e.HasField("button") and label in e.button.label)
        self._widgets = {button.id: ("trigger_value", True)}
        self._ask()

    def wait(self, seconds: float) -> None:
        """Look on for so long: progress is followed, as the page does."""
        end_s = time.monotonic() + seconds
        while (now := time.monotonic()) < end_s:
            due = [name for name, interval in self._timers.items() if interval]
            self._listen(min(end_s, now + (min(self._timers.values()) if due else seconds)), until_done=False)
            for name in due:
                if name in self._timers:
                    self._ask(fragment=name)

    def texts(self) -> str:
        """Words of the page: tiles, tables, problems, captions."""
        return "\n".join(
            e.html.body if e.HasField("html") else e.markdown.body if e.HasField("markdown") else
            e.alert.body if e.HasField("alert") else ""
            for _, e in sorted(self.elements.items())
        )  # fmt: skip

    def figures(self) -> list[str]:
        """The figures of the page as JSON."""
        return [e.plotly_chart.spec for _, e in sorted(self.elements.items()) if e.HasField("plotly_chart")]

    # ---------------------------------------------------------------- messages

    def _ask(self, fragment: str = "") -> None:
        from streamlit.proto.BackMsg_pb2 import BackMsg

        message = BackMsg()
        asked = message.rerun_script
        asked.query_string, asked.page_name, asked.fragment_id = self.query, self._page, fragment
        asked.is_auto_rerun, asked.page_script_hash = bool(fragment), self._hash
        asked.context_info.timezone, asked.context_info.locale = "UTC", "en"
        asked.context_info.color_scheme = "dark" if self._dark else "light"
        for name, (kind, value) in self._widgets.items():
            state = asked.widget_states.widgets.add(id=name)
            setattr(state, kind, value)
        self._widgets = {}
        started = time.monotonic()
        if not fragment:
            self.first_s = 0.0
        self._socket.send(message.SerializeToString())
        self._listen(started + PATIENCE_S, until_done=True, started=started)
        if not fragment:
            self.done_s = time.monotonic() - started
            self.first_s = self.first_s or self.done_s

    def _listen(self, end_s: float, *, until_done: bool, started: float = 0.0) -> None:
        from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

        while True:
            left = end_s - time.monotonic()
            if left <= 0:
                if until_done:
                    self.errors.append(f"no end of the run after {PATIENCE_S:.0f} s")
                return
            try:
                data = self._socket.recv(timeout=left)
            except TimeoutError:
                continue
            message = ForwardMsg()
            assert isinstance(data, bytes), "the server speaks in bytes alone"
            message.ParseFromString(data)
            kind = message.WhichOneof("type")
            if kind == "new_session":
                self._fresh, self._set = set(), {}
            elif kind == "delta":
                self._delta(message, started)
            elif kind == "page_info_changed":
                self.query = message.page_info_changed.query_string
            elif kind == "navigation":
                self._hash = message.navigation.page_script_hash
            elif kind == "auto_rerun":
                self._set[message.auto_rerun.fragment_id] = message.auto_rerun.interval
            elif kind == "stop_auto_rerun":
                for name in message.stop_auto_rerun.fragment_ids:
                    self._timers.pop(name, None)
            elif kind == "page_not_found":
                self.errors.append(f"no such page: {self._page}")
            elif kind == "script_finished":
                if message.script_finished == ForwardMsg.FINISHED_WITH_COMPILE_ERROR:
                    self.errors.append("the page does not compile")
                if message.script_finished == ForwardMsg.FINISHED_EARLY_FOR_RERUN:
                    continue
                if message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY and self._fresh:
                    # A whole run: what it did not draw anew is gone, and so are timers of fragments.
                    self.elements = {place: e for place, e in self.elements.items() if place in self._fresh}
                    self._timers = self._set
                if until_done:
                    return

    def _delta(self, message: Any, started: float) -> None:
        place = tuple(message.metadata.delta_path)
        self._fresh.add(place)
        if message.delta.WhichOneof("type") != "new_element":
            self.elements.pop(place, None)
            return
        element = message.delta.new_element
        self.elements[place] = element
        if element.HasField("exception"):
            self.errors.append(f"exception: {element.exception.type} {element.exception.message}")
        if element.HasField("alert") and WENT_WRONG in element.alert.body:
            self.errors.append(element.alert.body)
        if not self.first_s and place[0] == 0 and _seen(element):
            self.first_s = time.monotonic() - started


def _seen(element: Any) -> bool:
    """Whether a person sees an answer in it: tiles, a table, a figure, a problem."""
    if element.HasField("html"):
        return any(f'class="{name}' in element.html.body for name in ("tiles", "wide", "problem"))
    return element.HasField("plotly_chart") or element.HasField("alert")
