"""One self-contained HTML page: no script, no second file, nothing fetched."""

import base64
from collections.abc import Mapping, Sequence
import html
import json
import math
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --soft: #5f6368;
  --line: #d9dadd; --paper: #fff; --panel: #f6f7f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea;
  --soft: #a3a6ab; --line: #3c3f44; --paper: #17181a; --panel: #212327; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
.number { text-align: right; }
.plots { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); }
figure { margin: 0; break-inside: avoid; }
figure img { display: block; width: 100%; height: auto; max-width: 44rem;
  background: #fff; border: 1px solid var(--line); border-radius: 6px; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; }
details { background: var(--panel); border-radius: 6px; padding: .5rem .8rem;
  margin: .5rem 0; }
summary { cursor: pointer; }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.4; margin: .6rem 0 0;
  overflow-wrap: normal; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; }
  pre { white-space: pre-wrap; } .plots { grid-template-columns: 1fr 1fr; } }
"""


def render(title: str, sections: Sequence[str]) -> str:
  """The page; `title` is escaped here, sections are made by this module."""
  title = html.escape(title)
  return '\n'.join(
    [
      '<!doctype html>',
      '<html lang="en">',
      '<head>',
      '<meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      '<link rel="icon" href="data:,">',
      f'<title>{title}</title>',
      f'<style>{_STYLE}</style>',
      '</head>',
      '<body>',
      f'<h1>{title}</h1>',
      *sections,
      '</body>',
      '</html>',
      '',
    ]
  )


def section(heading: str, *parts: str) -> str:
  """A heading and what stands under it."""
  return '\n'.join(
    ['<section>', f'<h2>{html.escape(heading)}</h2>', *parts, '</section>']
  )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Rows by column name; the columns are those of all rows, in order."""
  columns = list(dict.fromkeys(name for row in rows for name in row))
  numeric = {
    name: all(_is_number(row[name]) for row in rows if _filled(row, name))
    for name in columns
  }
  head = ''.join(_cell('th', name, numeric[name]) for name in columns)
  body = [
    ''.join(_cell('td', row.get(name), numeric[name]) for name in columns)
    for row in rows
  ]
  lines = [f'<tr>{cells}</tr>' for cells in (head, *body)]
  return '\n'.join(['<div class="scroll"><table>', *lines, '</table></div>'])


def _filled(row, name):
  return row.get(name) is not None


def _is_number(value):
  return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(tag, value, numeric):
  style = ' class="number"' if numeric else ''
  return f'<{tag}{style}>{html.escape(shown(value))}</{tag}>'


def shown(value: Any) -> str:
  """A value of a table: floats with four digits, nothing for None."""
  if value is None:
    return ''
  if isinstance(value, float) and math.isfinite(value):
    return f'{value:.4g}'
  return str(value)


def plots(images: Sequence[tuple[bytes, str, str]]) -> str:
  """Figures of (PNG, what it is, caption)."""
  return '\n'.join(
    ['<div class="plots">', *(_figure(*image) for image in images), '</div>']
  )


def _figure(png, title, caption):
  data = base64.b64encode(png).decode()
  return (
    f'<figure><img alt="{html.escape(title)}"'
    f' src="data:image/png;base64,{data}">'
    f'<figcaption>{html.escape(caption)}</figcaption></figure>'
  )


def folded(label: str, obj: Any) -> str:
  """JSON behind a label that opens it."""
  text = html.escape(json.dumps(obj, indent=2, ensure_ascii=False))
  return (
    f'<details><summary>{html.escape(label)}</summary>\n<pre>{text}</pre></details>'
  )


def bullets(lines: Sequence[str]) -> str:
  """A list of plain sentences."""
  items = [f'<li>{html.escape(line)}</li>' for line in lines]
  return '\n'.join(['<ul>', *items, '</ul>'])
