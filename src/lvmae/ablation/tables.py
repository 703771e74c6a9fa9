"""Tables of an ablation: Markdown, LaTeX for a paper, and the plan that a dry run prints.

In: groups of rows that differ in nothing but seeds. Out: text; a row a place of the grid, and two columns a probe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lvmae.ablation.cost import Cost
from lvmae.ablation.grid import text_of
from lvmae.ablation.results import Group
from lvmae.evaluation.features import RAW
from lvmae.evaluation.tables import aligned
from lvmae.evaluation.tables import markdown as markdown_lines

_Dress = Callable[[str], str]

_LOWER_IS_BETTER = "MSE"
_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
          "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}  # fmt: skip


def markdown(groups: Sequence[Group]) -> str:
    """Means and deviations over seeds, the best of each probe in bold, with a note that says over what they are."""
    header, rows = _cells(groups, bold="**{}**".format, plus_minus="±")
    return "\n".join([*markdown_lines(header, rows), "", _note(groups)])


def latex(groups: Sequence[Group]) -> str:
    """The same as a booktabs table."""
    header, rows = _cells(groups, bold=r"\textbf{{{}}}".format, plus_minus=r"$\pm$", escape=_escaped)
    columns = "l" * (len(header) - len(_probes(groups)) * 2) + "rr" * len(_probes(groups))
    lines = [" & ".join(line) + r" \\" for line in rows]
    head = " & ".join(header) + r" \\"
    note = _escaped(_note(groups)).replace("±", r"$\pm$")
    begin = [r"% needs \usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*begin, *lines, r"\bottomrule", r"\end{tabular}", f"% {note}"])


def plan_text(cells: Sequence[tuple[str, Cost, float | None]]) -> str:
    """The cells, what each costs and, where one is done, the seconds it took; then what is left to do."""
    header = ["cell", "", "steps", "parameters", "segments", "10^12 multiply-adds", "seconds"]
    known = [(cost, took) for _, cost, took in cells if took is not None]
    pace = sum(took for _, took in known) / sum(cost.tera for cost, _ in known) if known else None
    rows = []
    for name, cost, took in cells:
        said = f"{took:.0f}, done" if took is not None else f"about {_figure(cost.tera * pace)}" if pace else "?"
        rows.append(
            [name, "", f"{cost.steps:,}", f"{cost.parameters:,}", f"{cost.segments:,.0f}", _figure(cost.tera), said]
        )
    left = sum(cost.tera for _, cost, took in cells if took is None)
    counted = f"{len(cells)} cells, {len(known)} of them done"
    if pace is None:
        told = f"{counted}; {_figure(left)} x 10^12 multiply-adds. What they take on this machine is known once one is done."
    else:
        told = f"{counted}; pre-training the others takes about {_figure(left * pace / 60)} minutes, probes left out."
    return "\n".join([*aligned(header, rows), "", told])


def _cells(
    groups: Sequence[Group], *, bold: _Dress, plus_minus: str, escape: _Dress = str
) -> tuple[list[str], list[list[str]]]:
    axes = list(dict.fromkeys(axis for group in groups for axis in group.at))
    probes = _probes(groups)
    header = ["features"] if any(group.features == RAW for group in groups) or not axes else []
    header += map(escape, axes)
    best = {probe: _best([group for group in groups if group.probe == probe]) for probe in probes}
    rows = []
    for features, place in dict.fromkeys((group.features, tuple(group.at.items())) for group in groups):
        at = dict(place)
        row = [features] if header[0] == "features" else []
        row += [text_of(at[axis]) if axis in at else "" for axis in axes]
        row = [escape(cell) for cell in row]
        for probe in probes:
            same = [g for g in groups if (g.features, g.probe, tuple(g.at.items())) == (features, probe, place)]
            row += _figures(same[0], same[0] is best[probe], bold, plus_minus) if same else ["", ""]
        rows.append(row)
    unit = {group.probe: group.metric + ("" if group.metric == _LOWER_IS_BETTER else " %") for group in groups}
    for probe in probes:
        header += [escape(f"{probe}, {unit[probe]}" if probe else "result"), escape("95 % interval")]
    return header, rows


def _figures(group: Group, best: bool, bold: _Dress, plus_minus: str) -> list[str]:
    if not group.values:
        return ["failed", ""]
    mean = f"{group.mean:.2f}"
    spread = f" {plus_minus} {group.std:.2f}" if len(group.values) > 1 else ""
    partly = f" ({group.failed} failed)" if group.failed else ""
    return [f"{bold(mean) if best else mean}{spread}{partly}", f"{group.low:.1f} to {group.high:.1f}"]


def _best(groups: list[Group]) -> Group | None:
    known = [group for group in groups if group.values]
    if not known:
        return None
    return (min if known[0].metric == _LOWER_IS_BETTER else max)(known, key=lambda group: group.mean)


def _probes(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(group.probe for group in groups))


def _note(groups: Sequence[Group]) -> str:
    counts = sorted({len(group.values) for group in groups if group.values})
    if counts in ([], [1]):
        return "One run each. The interval is over test videos."
    return (
        f"Mean ± standard deviation over {' or '.join(map(str, counts))} values each: every seed of pre-training with every "
        "seed of the probe. The interval is over test videos."
    )


def _figure(value: float) -> str:
    return (
        f"{value:.0f}" if value >= 100 else f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}" if value else "0"
    )


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
