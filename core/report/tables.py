"""The tables of the report in the layout of the paper, as cells of text, CSV and LaTeX."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from core.anatomy import in_words
from core.encoders import label_named
from core.study import Study
from core.workflows import Results
from core.workflows import comparisons as compare
from core.workflows.judging import BY_CHANCE, cohort_verdicts, gate_marks, gate_notes
from core.workflows.ranking import rank_scores
from core.workflows.regional import at_gate
from core.workflows.results import qc_caveats
from core.workflows.verdicts import controls_of


@dataclass(frozen=True)
class Table:
    """A table of the report: cells as text; ``marks`` stand before the names of its columns, not in the CSV."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str
    marks: tuple[str, ...] = ()

    @property
    def headings(self) -> tuple[str, ...]:
        """The names of the columns with their marks."""
        return tuple(map(str.__add__, self.marks, self.columns)) if self.marks else self.columns

    @property
    def body(self) -> tuple[tuple[str, ...], ...]:
        """The rows with regions in words, where the CSV has FreeSurfer's names."""
        if self.columns[0] != "region":
            return self.rows
        return tuple((in_words(region), *cells) for region, *cells in self.rows)


def all_tables(study: Study, results: Results) -> list[Table]:
    """Return the paper's Tables 1 to 3 made for this study."""
    return [table_one(study, results), table_two(study, results), table_three(study, results)]


def table_one(study: Study, results: Results) -> Table:
    """Arrange similarity as in Table 1 of the paper, corrected, with intervals and the floor in the last row."""
    names = [cohort.name for cohort in study.synthetic]
    cells = compare.table_one(rank_scores(results), names, study.settings.encoders, "corrected", controls_of(study))
    labels = {cohort.name: cohort.label for cohort in study.synthetic} | {compare.REAL: f"{study.real.label}: floor"}
    groups = list(cells.groupby(["encoder", "column"], sort=False))
    columns = ["cohort", *(_column(str(e), str(c), part) for (e, c), part in groups)]
    rows = []
    for name in (*names, compare.REAL):
        values = [_score(part[part["cohort"] == name].iloc[0]) for _, part in groups]
        rows.append((labels[name], *values))
    note = (
        "↓ lower is better, → closest to the floor is best. ★ best; ☆ best, tied; a control is no generator and takes "
        "neither. [95 % interval]. Floor: real against "
        f'real volumes at the same N; "a to b" is its range where N differs, no interval. N: {_sizes(cells)}.'
    )
    return Table("table_1", "Table 1: similarity", tuple(columns), tuple(rows), note)


def table_two(study: Study, results: Results) -> Table:
    """Arrange the quality gate as in Table 2 of the paper."""
    labels, marks = {cohort.name: cohort.label for cohort in study.cohorts}, marks_of(study, results)
    rows = tuple(
        (
            labels.get(row["cohort"], row["cohort"]),
            f"{row['n']:.0f}",
            f"{row['failed_scores']:.0f}",
            f"{row['failed_volumes']:.0f}",
            f"{row['pass_rate']:.1%} [{row['ci_low']:.1%}, {row['ci_high']:.1%}]",
            "yes" if row["reliable"] else "no, may be chance" if marks[row["cohort"]] == BY_CHANCE else "no",
        )
        for _, row in results.quality.iterrows()
    )
    columns = ("cohort", "N", "failed scores", "failed volumes", "pass rate ↑", "reliable")
    threshold = "".join(f"Threshold of the scores: {t:.3f}. " for t in results.quality["threshold"].dropna().head(1))
    note = f"{threshold}Pass rate with its 95 % interval. Not seen by the gate: {' '.join(qc_caveats(study))}"
    return Table("table_2", "Table 2: segmentation quality", columns, rows, note)


def table_three(study: Study, results: Results) -> Table:
    """Arrange Cohen's d by region as in Table 3 of the paper, with the engine's noise; failing cohorts are marked."""
    effects, failing = effects_with_noise(results), marks_of(study, results)
    names = [cohort for cohort in study.synthetic if (effects["cohort"] == cohort.name).any()]
    rows = []
    for region, part in effects.groupby("region", sort=False):
        by_cohort = part.set_index("cohort")
        cells = [_effect(pd.Series(by_cohort.loc[c.name])) if c.name in by_cohort.index else "" for c in names]
        noise = by_cohort["noise_floor"].max()
        rows.append((str(region), f"{noise:.2f}" if pd.notna(noise) else "–", *cells))
    called = [c.label for c in names if c.label != c.name]
    marks = [failing.get(c.name, "") for c in names]
    note = (
        "Cohen's d of TIV-adjusted volumes [95 % interval]; 0 is best, positive: the real region is larger. "
        "± noise: the |d| that the segmentation engine alone could make, largest over the cohorts; –: not known. "
        f"{' '.join([*gate_notes(marks), ''])}"
        f"N: {_sizes(effects)}.{' ' + '; '.join(called) + '.' if called else ''}"
    )
    columns = ("region", "± noise", *(c.name for c in names))
    return Table("table_3", "Table 3: anatomy", columns, tuple(rows), note, ("", "", *marks))


def effects_with_noise(results: Results) -> pd.DataFrame:
    """Return the effect sizes with ``noise_floor``, which stands in regional.csv alone; NaN where it is not known."""
    noise = at_gate(results.regional, False)[["cohort", "region", "noise_floor"]]
    return results.effect_sizes.merge(noise, "left", ["cohort", "region"])


def marks_of(study: Study, results: Results) -> dict[str, str]:
    """Return the mark of each cohort that fails the quality gate: surely, or by no more than chance."""
    return gate_marks(cohort_verdicts(results, [cohort.name for cohort in study.cohorts]))


def _sizes(table: pd.DataFrame) -> str:
    known = table.dropna(subset=["n_real", "n_synthetic"])[["n_real", "n_synthetic"]].drop_duplicates().to_numpy()
    return "; ".join(f"{real:.0f} real, {synthetic:.0f} synthetic" for real, synthetic in known) or "not known"


def _column(encoder: str, column: str, part: pd.DataFrame) -> str:
    direction = next((d for d in part["direction"] if isinstance(d, str)), "")
    arrow = {"lower": " ↓", "higher": " ↑", "match real": " →"}.get(direction, "")
    return f"{label_named(encoder)} {column}{arrow}".strip()


def _score(row: pd.Series) -> str:
    low, high = row["ci_low"], row["ci_high"]
    interval = f" [{low:.3g}, {high:.3g}]" if pd.notna(low) and low < high else ""
    if pd.isna(row["value"]):
        return f"{low:.3g} to {high:.3g}" if interval else "–"  # floors of cohorts that differ in N, no interval
    return f"{row['value']:.3g}{'' if not row['best'] else ' ☆' if row['tied'] else ' ★'}{interval}"


def _effect(row: pd.Series) -> str:
    if pd.isna(row["cohens_d"]):
        return "–"
    interval = f" [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]" if pd.notna(row.get("ci_low")) else ""
    return f"{row['cohens_d']:+.2f}{interval}"


_TEX = {
    **{c: "\\" + c for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}"},
    **{"[": "{[}", "]": "{]}"},  # after \\ a bracket would be an argument
    **{"★": r"$\star$", "☆": r"$\circ$", "±": r"$\pm$", "–": "--", "−": "$-$", "α": r"$\alpha$"},
    **{"✗": r"$\times$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "→": r"$\rightarrow$", "\n": " "},
}


def escape_latex(text: str) -> str:
    """Escape what LaTeX would take as a command."""
    return "".join(_TEX.get(letter, letter) for letter in text)


def latex(table: Table) -> str:
    """Return a table for LaTeX with the packages booktabs and graphicx: shrunk when it is wider than the page."""
    lines = [" & ".join(map(escape_latex, row)) + r" \\" for row in table.body]
    head = " & ".join(map(escape_latex, table.headings)) + r" \\"
    body = "\n".join([r"\toprule", head, r"\midrule", *lines, r"\bottomrule"])
    columns = "l" + "r" * (len(table.columns) - 1)
    caption = escape_latex(f"{table.title.partition(': ')[2].capitalize()}. {table.note}")
    shrunk = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    return "\n".join(
        [
            r"% needs \usepackage{booktabs,graphicx}",
            r"\begin{table}",
            rf"\caption{{{caption}}}",
            shrunk,
            rf"\begin{{tabular}}{{{columns}}}",
            body,
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )
