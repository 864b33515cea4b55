"""Kernel families fitted to measured rows: points, fit, errors in-sample and left out, files written."""
