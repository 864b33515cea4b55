"""Kubernetes: an indexed Job with one pod per node and the headless Service by which the pods find the first."""

from __future__ import annotations

import re
from typing import Any

from hwprofiles.errors import UserError
from planner.export.base import (
    MASTER_PORT,
    Export,
    Handover,
    comment,
    export_of,
    heading,
    plain_text,
    refuse_broken,
    yaml_text,
)

TARGET = "kubernetes"
VERSIONS = ("1.37",)
NAME = "moecast"
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,400}\Z")
_START = 'NODE_RANK="$JOB_COMPLETION_INDEX" exec bash /moecast/launch.sh "$@"'


def _job(asked: Handover, image: str) -> dict[str, Any]:
    nodes = asked.nodes_used
    labels = {"app": NAME}
    container = {
        "name": "trainer",
        "image": image,
        "command": ["bash", "-c", _START, "bash"],
        "env": [
            {"name": "NNODES", "value": str(nodes)},
            {"name": "MASTER_ADDR", "value": f"{NAME}-0.{NAME}"},
            {"name": "MASTER_PORT", "value": str(MASTER_PORT)},
        ],
        "ports": [{"containerPort": MASTER_PORT}],
        "resources": {"limits": {"nvidia.com/gpu": str(asked.devices_per_node)}},
        "volumeMounts": [
            {"name": "launch", "mountPath": "/moecast"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    apart = {
        "labelSelector": {"matchLabels": labels},
        "topologyKey": "kubernetes.io/hostname",
    }
    pod = {
        "restartPolicy": "Never",
        "subdomain": NAME,
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}},
        "containers": [container],
        "volumes": [
            {"name": "launch", "configMap": {"name": f"{NAME}-launch"}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": NAME, "labels": labels},
        "spec": {
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            "backoffLimit": 0,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _service() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"app": NAME},
            "ports": [{"name": "rendezvous", "port": MASTER_PORT}],
        },
    }


def export(asked: Handover, version: str) -> Export:
    """`job.yaml`. Raises UserError naming a broken rule, or without a container image."""
    refuse_broken(asked, "layout")
    image = asked.base or ""
    if not _IMAGE.match(image):
        raise UserError(
            f"{plain_text(image)!r} is no container image; name the one that holds the trainer with --base IMAGE "
            "[rule kubernetes-image]",
            where=TARGET,
        )
    missing = [
        "the trainer's files: kubectl create configmap moecast-launch --from-file=DIR of its export",
        "closeness to a leaf switch: core kinds know no network topology; add your site's node labels",
    ]
    if asked.ranks.hosts is not None:
        missing.append("the order of nodes: pods of an indexed Job land where the scheduler puts them")
    if asked.cluster.domain_devices > asked.cluster.devices_per_node:
        missing.append("nodes of one scale-up domain: its resource claims are no core kind")
    head = comment(heading(asked, TARGET, version, missing))
    files = {
        "job.yaml": head + yaml_text(_service()) + "---\n" + yaml_text(_job(asked, image)),
    }
    return export_of(asked, TARGET, version, files, missing)
