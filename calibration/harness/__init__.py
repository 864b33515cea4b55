"""The measuring harness: kernels timed on a real device, one family per file.

`points` (what is measured) -> `runner` (when, with which budget, how errors are kept) -> rows of a
CSV file. torch is imported inside functions only and nothing but torch, numpy and the standard
library is needed, so that the folder runs on any machine that has a GPU and torch.
"""
