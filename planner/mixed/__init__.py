"""Pipelines whose stages run on several types of devices: layers to stages of each type, searched and simulated."""
