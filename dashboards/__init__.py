"""What people see: pure figures (Report -> plotly Figure), the HTML report, the timeline export."""
