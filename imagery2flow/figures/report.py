"""A run of stage 4 or 5 as one HTML file that needs no network: scores, figures, settings, and an interactive map of the flows.

The page's own parts lie in ``report/``: template.html, report.css, and the scripts, which run in the order of ``SCRIPTS``. What
comes from data reaches the page escaped, or as JSON that the scripts show as text; a Content-Security-Policy allows that one script and no request.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from imagery2flow.figures.report_columns import unit_columns
from imagery2flow.figures.report_data import TRAINING, ReportRun, read_report_run
from imagery2flow.figures.report_figures import FIGURES
from imagery2flow.figures.report_map import map_content
from imagery2flow.flows.metrics import SCORES
from imagery2flow.flows.results import BEST_REACHABLE, as_texts
from imagery2flow.run.errors import shown
from imagery2flow.run.files import check_output_folder, strict_json, write_text
from imagery2flow.run.report_config import ReportConfig
from imagery2flow.run.stage import Ledger

SCRIPTS = ("scales.js", "data.js", "map.js", "search.js", "report.js")
PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
SVG_NAME = re.compile(r'(\bid="|href="#|url\(#)')


def write_report(config: ReportConfig, ledger: Ledger) -> Path:
    """Writes the report of a run; returns the path of the run file.

    Raises:
        InputError: A file cannot be used; the message names the stage that writes it.
    """
    check_output_folder(config.output.parent, "--output_path")
    run = read_report_run(config, ledger)
    content = map_content(run, unit_columns(run, config, ledger), config.largest_flows, ledger)
    page = assemble(run, content, config, ledger.notes)
    write_text(config.output, page)
    ledger.went_out["reports"] = 1
    ledger.say(f"{config.output} ({len(page) / 1e6:.1f} MB) opens in any browser, without a network")
    return config.output.with_name(config.output.name + ".run.json")


def assemble(run: ReportRun, content: dict[str, Any], config: ReportConfig, notes: Sequence[str]) -> str:
    """The whole page.

    Args:
        run: What is shown.
        content: From ``report_map.map_content``.
        config: How it was asked for.
        notes: What was said while the report was made.
    """
    script = "\n".join(page_file(name) for name in SCRIPTS)
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    parts = {
        "script_hash": f"sha256-{base64.b64encode(digest).decode('ascii')}",
        "style": page_file("report.css"),
        "script": script,
        "title": escape(f"Commuting flows of {run.region}, {run.record['config'].get('year', 'unknown year')}"),
        "subtitle": escape(subtitle(run)),
        "notes": "".join(f'<p class="note">{escape(note)}</p>' for note in cautions(run)),
        "pairs_shown": escape(pairs_shown(run, config.largest_flows)),
        "data": script_safe(content),
        "scores": scores_html(run),
        "figures": figures_html(run),
        "ledger": ledger_html(run.record["ledger"], notes),
        "settings": settings_html(run.record),
    }
    # In one pass: what data bring is never looked through for placeholders.
    return PLACEHOLDER.sub(lambda found: parts[found[1]], page_file("template.html"))


def page_file(name: str) -> str:
    """A part of the page out of the package."""
    return files("imagery2flow.figures").joinpath("report", name).read_text(encoding="utf-8")


def script_safe(content: Any) -> str:
    """JSON that cannot end the script element in which it stands, nor begin a comment there."""
    text = json.dumps(strict_json(content), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def subtitle(run: ReportRun) -> str:
    """Which model, and what of it is shown."""
    kind = "a flow model and its own region" if run.record["stage"] == TRAINING else "a region that a trained flow model predicts"
    return f"Run {run.record['config'].get('log', run.folder.name)}: {kind}; {len(run.units):,} units, {len(run.pairs):,} pairs of units."


def cautions(run: ReportRun) -> Iterable[str]:
    """What a reader could mistake."""
    if not run.has_observed:
        yield "No flow of this region is known: predictions only, without observed flows, differences and scores."
    if run.trained_on in ("gt10", "positive"):
        given = "more than 10 commute" if run.trained_on == "gt10" else "anybody commutes"
        yield f"The model was trained on pairs where {given}, and says how many commute given that: over other pairs, and in totals, it predicts too many."
    if run.record["stage"] == TRAINING:
        yield "The model has learned from most of these flows: only the scores, and the CPC of an origin, are of pairs that were held out."


def pairs_shown(run: ReportRun, largest_flows: int) -> str:
    """What an absent line means."""
    held = f" The map holds the {largest_flows:,} largest; totals and scores are of all." if len(run.pairs) > largest_flows else ""
    known = int(run.pairs["observed"].notna().sum())
    return f"The run's tables hold {len(run.pairs):,} pairs of units, {known:,} of them with a known flow; of any other pair nothing is shown.{held} Distances are great-circle."


def scores_html(run: ReportRun) -> str:
    """The table of scores, the model's own first."""
    if run.scores is None:
        return "<p>No flow was scored: the region has none, or the model has learned from all of them.</p>"
    tested_on = " and ".join(run.scores["tested on"].unique())
    texts = as_texts(run.scores).drop(columns=["region", "year", "tested on"]).rename(columns={"pairs": "universe", "number": "pairs"})
    explained = (
        "CPC is the common part of commuters, 0 to 1, 1 is perfect; RMSE and MAE are in commuters. Read a model against the rows constant, "
        "distance only and shuffled images: only what it has above them comes from the imagery. gt10 are pairs of more than 10 commuters, "
        "positive those of any, full all pairs whose flow is known, zeros too."
    )
    if BEST_REACHABLE in set(run.scores.predictor):
        explained += f" {BEST_REACHABLE} is the score of the law that the flows of a generated metro follow."
    caption = f"Scores of every predictor, by universe of pairs ({tested_on})"
    return f"<p>{escape(explained)}</p>" + table_html(texts, caption, ("pairs", *map(str.upper, SCORES)))


def table_html(texts: pd.DataFrame, caption: str, numbers: Sequence[str] = ()) -> str:
    """A table of texts, escaped; the columns in ``numbers`` stand to the right."""
    kinds = [' class="number"' if column in numbers else "" for column in texts]
    head = "".join(f'<th scope="col"{kind}>{escape(str(column))}</th>' for column, kind in zip(texts, kinds, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(str(cell))}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in texts.to_numpy()
    )
    name = escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table><caption>{name}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def figures_html(run: ReportRun) -> str:
    """Every figure that can be made of the run."""
    drawn = [(figure.caption, picture) for figure in FIGURES if (picture := figure.draw(run)) is not None]
    parts = [
        f'<figure><div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"{inline_svg(picture, f'figure{number}-', caption)}</div><figcaption>{escape(caption)}.</figcaption></figure>"
        for number, (caption, picture) in enumerate(drawn)
    ]
    return f'<div class="figures">{"".join(parts)}</div>' if parts else "<p>The run holds no table of which a figure could be made.</p>"


def inline_svg(figure: Figure, prefix: str, caption: str) -> str:
    """A figure as an SVG element; ids begin with ``prefix``, so that those of two figures never meet in one page."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "imagery2flow"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(
        r"<style.*?</style>|<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )  # the one would style the whole page
    named = SVG_NAME.sub(lambda found: found[1] + prefix, svg)
    return named.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}" stroke-linejoin="round"', 1)


def ledger_html(ledger: dict[str, Any], notes_of_report: Sequence[str]) -> str:
    """The run's own ledger: counts, what was left out and why, what it said; and what was said while the report was made."""
    counts = [("in", what, f"{count:,}") for what, count in ledger.get("in", {}).items()]
    counts += [("out", what, f"{count:,}") for what, count in ledger.get("out", {}).items()]
    counts += [("left out", f"{reason} ({shown(ids)})", f"{len(ids):,}") for reason, ids in ledger.get("left_out", {}).items()]
    table = table_html(pd.DataFrame(counts, columns=["", "what", "number"]), "Ledger of the run", ("number",))
    nothing = "" if ledger.get("left_out") else "<p>Nothing was left out.</p>"
    said = {"What the run said:": ledger.get("notes", []), "What was said while this report was made:": notes_of_report}
    lists = [(when, "".join(f"<li>{escape(str(note))}</li>" for note in notes)) for when, notes in said.items() if notes]
    return table + nothing + "".join(f"<p>{when}</p><ul>{items}</ul>" for when, items in lists)


def settings_html(record: dict[str, Any]) -> str:
    """Settings, and everything else that ``run.json`` tells but the ledger, folded."""
    origin = {name: value for name, value in record.items() if name not in ("config", "ledger", "inputs_sha256", "versions")}
    tables = {
        "Settings": record["config"],
        "Run": origin,
        "Versions": record.get("versions", {}),
        "Input files and their sha256": record.get("inputs_sha256", {}),
    }
    return "".join(
        f"<details><summary>{name} ({len(rows):,})</summary>{table_html(rows, name)}</details>"
        for name, values in tables.items()
        if len(rows := pd.DataFrame(flattened(values), columns=["name", "value"]))
    )


def flattened(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Names, nested ones with dots, and their values as text."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value_text(value)


def value_text(value: Any) -> str:
    """A setting as a reader sees it."""
    if value is None or value == []:
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
