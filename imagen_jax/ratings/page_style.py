"""Rules that the rating page adds to the report's style sheet."""

STYLE = """
[hidden] { display: none !important; }
.rating { max-width: 1500px; margin: 0 auto; padding: 0 clamp(12px, 2.5vw, 32px) 24px; }
.top { display: flex; align-items: center; gap: 16px; min-height: 56px; color: var(--soft); font-size: 0.9rem;
  font-variant-numeric: tabular-nums; }
.top button { padding: 5px 12px; }
.top:has(+ main > #welcome:not([hidden])) { visibility: hidden; }
progress { flex: 1; appearance: none; height: 8px; border: 0; border-radius: 4px; overflow: hidden;
  background: var(--rule); }
progress::-webkit-progress-bar { background: var(--rule); }
progress::-webkit-progress-value { background: var(--accent); }
progress::-moz-progress-bar { background: var(--accent); }
section { padding-top: 0; }
#welcome, #end { max-width: 720px; margin: clamp(16px, 7vh, 88px) auto 0; background: var(--card);
  border: 1px solid var(--rule); border-radius: 14px; padding: clamp(20px, 4vw, 44px); }
#welcome .lede, #end .lede { margin: 16px 0 24px; }
form { display: grid; grid-template-columns: 1fr auto; gap: 8px 12px; margin-top: 24px; }
form label { grid-column: 1 / -1; font-weight: 560; }
button, input { font: inherit; color: inherit; border-radius: 10px; border: 1px solid var(--rule);
  background: var(--card); padding: 10px 16px; min-width: 0; }
input { border-color: var(--soft); background: var(--bg); }
button { cursor: pointer; }
button:hover:not(:disabled) { border-color: var(--accent); }
button:disabled { opacity: 0.5; cursor: default; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
h1:focus-visible { outline: none; }
.go { background: var(--accent); border-color: var(--accent); color: var(--bg); font-weight: 620; }
kbd { font: 600 0.78rem/1 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; border: 1px solid currentColor;
  border-radius: 5px; padding: 2px 6px; opacity: 0.75; white-space: nowrap; }
#prompt { max-width: 60ch; margin: 4px auto 14px; text-align: center; font-size: clamp(1.1rem, 1rem + 0.6vw, 1.4rem);
  line-height: 1.4; font-weight: 560; }
#sides { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr);
  gap: clamp(12px, 2.5vw, 32px); }
.side { background: var(--card); border: 1px solid var(--rule); border-radius: 14px; padding: 10px 12px 12px;
  margin-top: 2px; width: 100%; min-width: 0; }
.side h2 { font-size: 0.95rem; color: var(--soft); text-align: center; margin: 0 0 8px; letter-spacing: 0; }
.images { display: grid; gap: 8px; grid-template-columns: repeat(var(--columns), minmax(0, 1fr));
  max-width: calc((100vh - 330px) * var(--columns) / var(--rows)); min-width: min(100%, 240px); margin: 0 auto; }
.images.n1 { --columns: 1; --rows: 1; }
.images.n2 { --columns: 2; --rows: 1; }
.images.n4 { --columns: 2; --rows: 2; }
.images.n6 { --columns: 3; --rows: 2; }
.images.n8 { --columns: 4; --rows: 2; }
.images.n9 { --columns: 4; --rows: 3; }
.images img { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 6px; }
#questions { display: grid; gap: 10px; margin: 16px auto 0; max-width: 1080px; }
.question { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1.15fr); align-items: center; gap: 8px 20px;
  background: var(--card); border: 1px solid var(--rule); border-left: 4px solid var(--rule); border-radius: 12px;
  padding: 10px 14px; }
.question.active { border-left-color: var(--accent); }
.question p { margin: 0; font-weight: 560; line-height: 1.35; }
.answers { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: 8px; }
.answers button { padding: 9px 8px; line-height: 1.25; }
.answers button[aria-pressed="true"] { background: var(--tint); border-color: var(--accent);
  box-shadow: inset 0 0 0 1px var(--accent); font-weight: 620; }
.question:not(.active) kbd { visibility: hidden; }
.go-on { display: flex; justify-content: center; margin: 14px 0 0; }
.go-on button { min-width: 200px; }
#status { margin: 10px auto 0; text-align: center; color: var(--c5); font-weight: 560; min-height: 1.6em; }
@media (max-width: 760px) {
  .question { grid-template-columns: minmax(0, 1fr); }
  .images { grid-template-columns: repeat(min(2, var(--columns)), minmax(0, 1fr)); max-width: none; }
  .images.n1 { grid-template-columns: minmax(0, 1fr); }
  .answers kbd { display: none; }
  .side { padding: 8px; }
}
"""
