"""The report's style sheet: one calm page for wide and narrow windows, light and dark.

The series colours are Okabe and Ito's, darkened or lightened until each stands 3:1 against its background;
text stands 4.5:1 or better (the tests compute both).
"""

LIGHT = {
    "bg": "#f7f8fa",
    "card": "#ffffff",
    "ink": "#1c2430",
    "soft": "#566173",
    "rule": "#dde2ea",
    "accent": "#0a5f8f",
    "tint": "#e6f1f8",
    "c0": "#0072b2",
    "c1": "#c14e00",
    "c2": "#00805c",
    "c3": "#b0508a",
    "c4": "#8a6d00",
    "c5": "#a3123a",
    "c6": "#5b5bb5",
    "c7": "#4a4a4a",
    "r0": "#3b1f6b",
    "r1": "#3f4a9a",
    "r2": "#2b6f9e",
    "r3": "#1f8585",
    "r4": "#3f8a4d",
    "r5": "#8a7d12",
    "r6": "#c2570c",
}

DARK = {
    "bg": "#12161c",
    "card": "#1a2029",
    "ink": "#e6eaf0",
    "soft": "#a3aebd",
    "rule": "#2f3845",
    "accent": "#7cc4f0",
    "tint": "#1d3243",
    "c0": "#56b4e9",
    "c1": "#ef8a4a",
    "c2": "#2fc79a",
    "c3": "#e291c4",
    "c4": "#dcc23a",
    "c5": "#ff9db0",
    "c6": "#a5a5f0",
    "c7": "#c4c4c4",
    "r0": "#a48be0",
    "r1": "#8095ea",
    "r2": "#5aaee0",
    "r3": "#48c4c0",
    "r4": "#72cf83",
    "r5": "#d4c64a",
    "r6": "#f5a05a",
}

_RULES = """
*, *::before, *::after { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.page { max-width: 1240px; margin: 0 auto; padding: 0 clamp(16px, 4vw, 48px) 64px; }
header { padding: clamp(32px, 6vw, 72px) 0 24px; }
h1, h2, h3 { line-height: 1.2; text-wrap: balance; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.9rem, 1.3rem + 2.4vw, 3rem); letter-spacing: -0.02em; margin: 0; font-weight: 680; }
h2 { font-size: clamp(1.35rem, 1.15rem + 0.8vw, 1.75rem); letter-spacing: -0.01em; margin: 0 0 8px; }
h3 { font-size: 1.08rem; margin: 32px 0 8px; }
p { max-width: 68ch; margin: 0 0 16px; overflow-wrap: anywhere; }
a { color: var(--accent); text-underline-offset: 3px; }
.eyebrow { color: var(--soft); font-size: 0.9rem; margin: 0 0 8px; }
.lede { font-size: clamp(1.08rem, 1rem + 0.5vw, 1.32rem); line-height: 1.5; max-width: 60ch;
  margin: 16px 0 0; }
.chunks { display: flex; flex-wrap: wrap; gap: 0 10px; }
.chunks span { max-width: 100%; overflow-wrap: anywhere; }
.soft, .meta { color: var(--soft); }
.meta { font-size: 0.8rem; line-height: 1.45; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
nav { border-block: 1px solid var(--rule); padding: 12px 0; font-size: 0.92rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; margin: 0; padding: 0; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
section { padding-top: clamp(32px, 5vw, 56px); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }

.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 158px), 1fr)); gap: 12px;
  margin: 28px 0 0; }
.facts div { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 12px 16px;
  display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.facts dt { color: var(--soft); font-size: 0.84rem; line-height: 1.35; }
.facts dd { margin: 0; font-size: 1.3rem; font-weight: 620; font-variant-numeric: tabular-nums; }

figure { margin: 0; min-width: 0; }
img { display: block; max-width: 100%; height: auto; border-radius: 4px; background: var(--rule); }
.pixels { image-rendering: pixelated; }
.frame { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 12px;
  width: fit-content; max-width: 100%; margin: 8px 0 20px; }
.gallery { display: grid; gap: 24px 16px; margin: 20px 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 156px), 1fr)); }
.gallery.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.gallery img { width: 100%; }
.gallery figcaption { margin-top: 8px; font-size: 0.9rem; line-height: 1.4; overflow-wrap: anywhere; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; align-items: start; }
.unread { display: grid; place-items: center; min-height: 96px; border: 1px dashed var(--soft);
  border-radius: 4px; padding: 8px; font-size: 0.8rem; color: var(--soft); overflow-wrap: anywhere; }

.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; margin: 12px 0; }
th, td { padding: 7px 14px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
thead th { color: var(--soft); font-weight: 560; vertical-align: bottom; }
th:first-child { text-align: left; padding-left: 12px; font-weight: 560; }
.marked th, .marked td { background: var(--tint); }
.badge { font-size: 0.76rem; font-weight: 620; color: var(--accent); margin-left: 8px; }
.bar { display: block; width: 120px; height: 8px; border-radius: 4px; background: var(--rule); }
.bar span { display: block; height: 100%; border-radius: 4px; background: var(--c0); }

.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 20px;
  margin: 16px 0; }
.chart { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px 10px;
  margin: 0 0 16px; }
.charts .chart { margin: 0; }
.chart figcaption { font-weight: 600; font-size: 0.98rem; }
.chart .scroll > svg { display: block; width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; list-style: none; margin: 4px 0 8px; padding: 0;
  font-size: 0.84rem; color: var(--soft); }
.legend li { display: flex; align-items: center; gap: 6px; }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.mark { fill: currentColor; stroke: var(--card); stroke-width: 1; }
svg .faint .line { stroke-width: 1.1; opacity: 0.5; }
.gridline { stroke: var(--rule); }
.axis { stroke: var(--soft); }
.reference { stroke: var(--soft); stroke-dasharray: 3 4; }
.best { stroke: var(--accent); stroke-width: 1.5; }
svg text { font-family: inherit; fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .axis-label, svg .note { fill: var(--ink); }
svg .note { stroke: var(--card); stroke-width: 5px; stroke-linejoin: round; paint-order: stroke; }
.hover { fill: transparent; }
.hover:hover { fill: var(--ink); fill-opacity: 0.08; }

details { border: 1px solid var(--rule); border-radius: 10px; background: var(--card); margin: 0 0 12px; }
summary { cursor: pointer; padding: 10px 16px; font-weight: 560; }
pre { margin: 0; overflow-x: auto; font: 13px/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  tab-size: 2; }
details pre { padding: 4px 16px 14px; }
.command pre { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 12px 16px; white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 0.94em; }
footer { margin-top: 56px; border-top: 1px solid var(--rule); padding-top: 16px; color: var(--soft);
  font-size: 0.86rem; }
@media (max-width: 640px) { .frame .pixels { image-rendering: auto; } .frame { padding: 6px; } }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
@media print { .scroll { overflow: visible; } section { break-inside: avoid-page; } }
"""


def style_sheet() -> str:
    """The whole style sheet, both themes."""

    def variables(theme: dict[str, str]) -> str:
        return ":root { " + " ".join(f"--{name}: {colour};" for name, colour in theme.items()) + " }"

    series = " ".join(f".{name} {{ color: var(--{name}); }}" for name in LIGHT if name[1:].isdigit())
    dark = f"@media (prefers-color-scheme: dark) {{ {variables(DARK)} }}"
    return "\n".join((variables(LIGHT), dark, _RULES.strip(), series))
