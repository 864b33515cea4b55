"""What the hardware and the trainer software are: data and a thin reader. Imports no other room.

Ask `hwprofiles.catalogue` for devices, clusters and software by name or by file.
"""
