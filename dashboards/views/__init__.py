"""The views of the dashboard: one module each, with TITLE, ICON and show(page)."""
