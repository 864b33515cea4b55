"""Closed forms of kernel times: pure numpy functions of sizes and of parameters fitted to measurements."""
