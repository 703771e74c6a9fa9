"""Frozen features, probed: tasks and labels, the paper's probes, tables."""

from lvmae.evaluation.benchmark import LVUResult, probe_lvu
from lvmae.evaluation.labels import Task, load_labels
from lvmae.evaluation.probing import probe
from lvmae.evaluation.published import PUBLISHED
from lvmae.evaluation.settings import ProbeSettings
from lvmae.evaluation.tables import ProbeRow, ProbeTable
from lvmae.evaluation.tasks import LVU, TASKS, load_task

__all__ = [
    "LVU",
    "PUBLISHED",
    "TASKS",
    "LVUResult",
    "ProbeRow",
    "ProbeSettings",
    "ProbeTable",
    "Task",
    "load_labels",
    "load_task",
    "probe",
    "probe_lvu",
]
