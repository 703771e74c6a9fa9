"""Ablations: pre-train, represent and probe every cell of a grid over recipes and stores, and tabulate the results."""

from lvmae.ablation.figures import draw_figures
from lvmae.ablation.grid import Cell, Grid, axes_of, read_plan
from lvmae.ablation.job import Ablation, ablate, plan
from lvmae.ablation.results import Group, groups

__all__ = ["Ablation", "Cell", "Grid", "Group", "ablate", "axes_of", "draw_figures", "groups", "plan", "read_plan"]
