"""How the page of a report looks, in light and dark."""

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --ink: #1d1f23; --soft: #6a6f78; --line: #e3e3de; --card: #fff;
  --accent: #2563eb; --real: #c9ccd3; --warn: #fff6df; --warn-line: #e7c766; --copy: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --ink: #e7e8ea; --soft: #989ea8; --line: #2b2f36;
  --card: #1b1e23; --accent: #7aa7ff; --real: #4a505b; --warn: #2b2614; --warn-line: #6f5f22; --copy: #fb923c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; letter-spacing: -.01em; }
h2 { font-size: 1.05rem; margin: 0 0 .75rem; }
h3 { font-size: .9rem; font-weight: 500; margin: 1rem 0 .4rem; }
header p, section > p { color: var(--soft); margin: 0 0 1rem; max-width: 48rem; }
section { margin-top: 2.25rem; }
aside { background: var(--warn); border-left: 3px solid var(--warn-line); border-radius: 4px; padding: .6rem 1rem;
  margin-top: 1.25rem; }
aside p { margin: .3rem 0; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .9rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line);
  vertical-align: baseline; }
thead th { border-top: 0; color: var(--soft); font-weight: 500; font-size: .85rem; }
th:first-child, .words { text-align: left; }
tbody th { font-weight: 500; }
td.words { color: var(--soft); white-space: normal; }
td b { font-weight: 650; }
td small { display: block; color: var(--soft); font-size: .78rem; }
figure { margin: 0; }
figcaption { color: var(--soft); font-size: .85rem; }
img { display: block; width: 100%; image-rendering: pixelated; border-radius: 2px; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1.5rem; }
.sides figcaption { margin-bottom: .4rem; }
.grid { display: grid; grid-template-columns: repeat(var(--columns), 1fr); gap: 3px; }
.plot { image-rendering: auto; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(4.2rem, 1fr)); gap: .9rem .6rem; }
.pairs img + img { margin-top: 3px; }
.pairs figcaption { text-align: center; font-variant-numeric: tabular-nums; margin-top: .2rem; }
.pairs .copy figcaption { color: var(--copy); font-weight: 650; }
.pairs .copy img { outline: 2px solid var(--copy); outline-offset: 1px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 26rem)); gap: 1.25rem; }
.plots figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .75rem; }
.drawn { display: grid; gap: 1rem; }
.drawn img { image-rendering: auto; border-radius: 8px; }
@media (prefers-color-scheme: dark) { .drawn img { filter: invert(.88) hue-rotate(180deg); } }
svg { display: block; width: 100%; height: auto; }
.area { fill: var(--real); }
.curve { fill: none; stroke: var(--accent); stroke-width: 2; vector-effect: non-scaling-stroke; }
.red .curve { stroke: #dc2626; } .green .curve { stroke: #16a34a; }
.key { display: inline-block; width: .9rem; height: .7rem; border-radius: 2px; background: var(--real); }
.key.line { height: 3px; background: var(--accent); vertical-align: middle; }
details { border-top: 1px solid var(--line); padding-top: 1rem; }
summary { cursor: pointer; color: var(--soft); }
pre { overflow-x: auto; font-size: .8rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 1rem; }
"""
