"""Tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from napari_shmoareg.analysis.expert_load import ExpertLoad


def show(*tables: Table) -> None:
    """Print tables on stdout, an empty line between them."""
    console = Console(highlight=False)
    for number, table in enumerate(tables):
        if number:
            console.print()
        if table.title:  # printed here, as a table's own title is wrapped to the table's width
            console.print(table.title, style="bold", markup=False)
            table.title = None
        console.print(table)


def results(title: str, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[float | None], str]]) -> Table:
    """What a registration reached.

    Parameters
    ----------
    title : str
    columns : sequence of str
        Heads of the columns of numbers.
    rows : iterable of (name, values, format)
        A value that is None or NaN stays empty; a row without any value is left out.
    """
    table = plain_table(title)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for name, values, form in rows:
        cells = ["" if v is None or v != v else format(v, form) for v in values]
        if any(cells):
            table.add_row(name, *cells)
    return table


def load_tables(load: ExpertLoad) -> list[Table]:
    """Shares of selections in percent, one row per layer and image or direction; the blocks of a layer added up."""
    whole = load.over_blocks()
    tables = []
    for part, title in (("encoder", "attention heads (MoA)"), ("decoder", "deformation experts (SHMoE)")):
        share = whole.select(part=part).share
        if not share:
            continue
        table = plain_table(f"{title}: share of selections in % per expert")
        table.add_column("layer", no_wrap=True)
        for expert in range(max(len(s) for s in share.values())):
            table.add_column(str(expert), justify="right")
        for place, shares in share.items():
            table.add_row(
                f"{part} {place.layer} {place.image or place.direction or ''}", *(f"{100 * s:.0f}" for s in shares)
            )
        tables.append(table)
    return tables


def plain_table(title: str) -> Table:
    """A table without lines."""
    return Table(title=title, box=None, pad_edge=False, header_style="bold")
