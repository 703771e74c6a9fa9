"""Frozen features, judged: tasks and labels, probes, tables."""

from lvmae.evaluation.families import FamilyResult, probe_family
from lvmae.evaluation.labels import load_labels
from lvmae.evaluation.probing import probe
from lvmae.evaluation.saved import SavedProbe, fit_probe, predict, suggest
from lvmae.evaluation.settings import ProbeSettings
from lvmae.evaluation.tables import ProbeRow, ProbeTable
from lvmae.evaluation.task import Task
from lvmae.evaluation.tasks import TaskFamily, family_of, load_task, task_names

__all__ = [
    "FamilyResult",
    "ProbeRow",
    "ProbeSettings",
    "ProbeTable",
    "SavedProbe",
    "Task",
    "TaskFamily",
    "family_of",
    "fit_probe",
    "load_labels",
    "load_task",
    "predict",
    "probe",
    "probe_family",
    "suggest",
    "task_names",
]
