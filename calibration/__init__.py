"""How we know: a measuring harness, fits of the few free factors, and scores on published runs."""
