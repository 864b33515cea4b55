"""The dashboard as a server: `streamlit run dashboards/app.py`, and what `moecast dashboard` starts.

Libraries are read and a first question is answered before the server opens, so that no visitor waits for them.
"""

from __future__ import annotations

from pathlib import Path

from streamlit.starlette import App

from dashboards.ready import warm

warm()
app = App(Path(__file__).with_name("page.py"))
