"""Frozen features, judged: tasks and labels, probes, tables."""

from lvmae.evaluation.families import FamilyResult, probe_family
from lvmae.evaluation.labels import load_labels
from lvmae.evaluation.probing import probe
from lvmae.evaluation.saved import SavedProbe, fit_probe, predict, suggest
from lvmae.evaluation.settings import ProbeSettings
from lvmae.evaluation.spans import SpanLabels, SpanTable, fit_span_probe, load_spans, predict_spans, probe_spans
from lvmae.evaluation.tables import ProbeRow, ProbeTable
from lvmae.evaluation.task import Task
from lvmae.evaluation.tasks import TaskFamily, family_of, load_task, task_names

__all__ = [
    "FamilyResult",
    "ProbeRow",
    "ProbeSettings",
    "ProbeTable",
    "SavedProbe",
    "SpanLabels",
    "SpanTable",
    "Task",
    "TaskFamily",
    "family_of",
    "fit_probe",
    "fit_span_probe",
    "load_labels",
    "load_spans",
    "load_task",
    "predict",
    "predict_spans",
    "probe",
    "probe_family",
    "probe_spans",
    "suggest",
    "task_names",
]
