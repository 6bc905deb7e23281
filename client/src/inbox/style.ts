// How <tidings-inbox> looks. A page changes it by the custom properties that stand first, or by ::part(). light-dark()
// follows the color-scheme of the page, logical properties its direction. The sheet is adopted, so it works under a
// Content-Security-Policy without inline styles, and all elements share it.

const CSS = `
:host {
  --_default-accent: light-dark(#3451c6, #a3b5ff);
  --_default-surface: light-dark(#fff, #1a1f2a);
  --_default-text: light-dark(#1b2130, #e8ebf2);
  --_default-muted: light-dark(#596273, #a2acbf);
  --_default-line: light-dark(#e3e6ec, #2f3746);
  --_default-hover: light-dark(#f2f4f8, #242b39);
  --_default-fresh: light-dark(#f0f4ff, #20283c);
  --_default-badge: light-dark(#c62a47, #ff8fa0);
  --_default-on-badge: light-dark(#fff, #33060f);
  --_default-radius: 0.875rem;
  --_accent: var(--tidings-accent, var(--_default-accent));
  --_surface: var(--tidings-surface, var(--_default-surface));
  --_text: var(--tidings-text, var(--_default-text));
  --_muted: var(--tidings-muted, var(--_default-muted));
  --_line: var(--tidings-line, var(--_default-line));
  --_hover: var(--tidings-hover, var(--_default-hover));
  --_fresh: var(--tidings-fresh, var(--_default-fresh));
  --_badge: var(--tidings-badge, var(--_default-badge));
  --_on-badge: var(--tidings-on-badge, var(--_default-on-badge));
  --_warn: var(--tidings-warn, light-dark(#8a4b00, #f0b467));
  --_good: var(--tidings-good, light-dark(#14713f, #6fd6a0));
  --_radius: var(--tidings-radius, var(--_default-radius));
  --_width: var(--tidings-width, 25rem);
  --_height: var(--tidings-height, 34rem);
  --_shadow: var(--tidings-shadow, 0 0.75rem 2.5rem light-dark(#1b213029, #0009));
  position: relative; display: inline-block; color: var(--_text); text-align: start;
  font: var(--tidings-font, inherit); font-size: var(--tidings-font-size, 0.9375rem); line-height: 1.4;
}
:host([theme=neutral]) {
  --_default-accent: var(--_default-text); --_default-fresh: var(--_default-hover); --_default-badge: var(--_default-text);
  --_default-on-badge: var(--_default-surface); --_default-radius: 0.375rem;
}
:host([theme=warm]) {
  --_default-accent: light-dark(#9a3d12, #ffb38a); --_default-surface: light-dark(#fffaf3, #1f1a16); --_default-line: light-dark(#eaddcd, #3d332a);
  --_default-hover: light-dark(#f8eee1, #2b241d); --_default-fresh: light-dark(#fdf1de, #332718); --_default-radius: 1.25rem;
}
:host([theme=contrast]) {
  --_default-accent: light-dark(#0000b8, #a8d1ff); --_default-surface: light-dark(#fff, #000); --_default-text: light-dark(#000, #fff);
  --_default-muted: var(--_default-text); --_default-line: var(--_default-text); --_default-hover: light-dark(#e8e8e8, #303030);
  --_default-fresh: var(--_default-hover); --_default-badge: var(--_default-text); --_default-on-badge: var(--_default-surface); --_default-radius: 0;
}
:host([mode=light]) .panel { color-scheme: light; }
:host([mode=dark]) .panel { color-scheme: dark; }
:host([mode=auto]) .panel { color-scheme: light dark; }
:host([inline]:not([inline="false" i])) { display: flex; flex-direction: column; max-block-size: var(--_height); }
:host([hidden]), [hidden] { display: none !important; }
* { box-sizing: border-box; margin: 0; }
button { color: inherit; background: none; border: 0; padding: 0; font: inherit; text-align: inherit; cursor: pointer; }
button:disabled { opacity: 0.5; cursor: default; }
:focus-visible { outline: 2px solid var(--_accent); outline-offset: 2px; }
svg { display: block; inline-size: 1.25rem; block-size: 1.25rem; fill: none; stroke: currentColor; stroke-width: 1.8;
  stroke-linecap: round; stroke-linejoin: round; }
.unseen { position: absolute; inline-size: 1px; block-size: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }

button.bell { display: flex; align-items: center; justify-content: center; min-inline-size: 2.75rem; min-block-size: 2.75rem; border-radius: 1.375rem; }
button.bell:hover, button.bell[aria-expanded=true] { background: var(--_hover); }
button.bell svg { inline-size: 1.5rem; block-size: 1.5rem; }
.badge {
  min-inline-size: 1.25rem; padding: 0 0.3rem; border-radius: 1rem; background: var(--_badge); color: var(--_on-badge);
  font-size: 0.75rem; font-weight: 700; line-height: 1.25rem; text-align: center; font-variant-numeric: tabular-nums;
}
button .badge { align-self: start; margin-inline-start: -0.6rem; box-shadow: 0 0 0 2px var(--_surface); }
:host([inline]:not([inline="false" i])) button.bell { display: none; }

.panel { flex-direction: column; padding: 0; border: 1px solid var(--_line); border-radius: var(--_radius);
  background: var(--_surface); color: var(--_text); overflow: hidden auto; }
.header, .error, .footer { flex: none; }
.panel:focus { outline: none; }
.panel[popover] { position: fixed; inset: auto; box-shadow: var(--_shadow); inline-size: min(var(--_width), 100vw - 1rem);
  max-block-size: var(--_height); }
.panel[popover]:popover-open, :host([inline]:not([inline="false" i])) .panel { display: flex; }
:host([inline]:not([inline="false" i])) .panel { flex: 1; min-block-size: 0; }
@starting-style { .panel[popover]:popover-open { opacity: 0; translate: 0 -0.4rem; } }
.panel[popover] { transition: opacity 0.12s, translate 0.12s; }

.header { display: flex; flex-wrap: wrap; align-items: center; gap: 0 0.5rem; min-block-size: 3.25rem; padding: 0.5rem 1rem; border-block-end: 1px solid var(--_line); }
.header slot { display: flex; flex: 1 1 auto; align-items: center; gap: 0.5rem; min-inline-size: 0; }
.title { font-size: 1.0625rem; font-weight: 650; overflow-wrap: anywhere; }
.quiet { min-block-size: 1.75rem; padding: 0 0.5rem; margin-inline-end: -0.5rem; border-radius: 0.5rem; color: var(--_accent);
  font-size: 0.875rem; font-weight: 600; }
.quiet:hover:enabled { background: var(--_hover); }
.error { display: flex; align-items: center; gap: 0.5rem; padding: 0.5rem 1rem; color: var(--_warn); font-size: 0.875rem;
  border-block-end: 1px solid var(--_line); }
.error span { flex: 1; min-inline-size: 0; overflow-wrap: anywhere; }

.scroll { position: relative; display: flex; flex: 1; flex-direction: column; min-block-size: 6rem; overflow-y: auto; overscroll-behavior: contain; scrollbar-width: thin; }
.list { padding: 0; list-style: none; }
.row { position: relative; display: grid; grid-template-columns: auto minmax(0, 1fr) auto; align-items: start; gap: 0.75rem;
  padding-block: 0.75rem; padding-inline: 1rem 0.75rem; cursor: pointer; }
.row + .row { border-block-start: 1px solid var(--_line); }
.row.unread { background: var(--_fresh); }
.row:hover { background: var(--_hover); }
.row:has(.open:focus-visible) { outline: 2px solid var(--_accent); outline-offset: -3px; }
.icon { display: grid; place-items: center; inline-size: 2.25rem; block-size: 2.25rem; border-radius: 50%; overflow: hidden;
  color: var(--_muted); background: light-dark(#596b8a1c, #c3d0ea1c); }
.icon.like { color: light-dark(#b3254a, #ff93a9); background: light-dark(#d7335f1c, #ff93a926); }
.icon.comment { color: light-dark(#2f52b8, #9db8ff); background: light-dark(#3d66dd1c, #9db8ff26); }
.icon.follow { color: light-dark(#1d6b45, #7fd9ab); background: light-dark(#22915a1c, #7fd9ab26); }
.initials { color: var(--_text); font-size: 0.8125rem; font-weight: 650; }
.image { inline-size: 100%; block-size: 100%; object-fit: cover; }
.body { min-inline-size: 0; }
a { color: inherit; text-decoration: none; }
.open { display: block; inline-size: 100%; outline: none; }
.open::after { content: ""; position: absolute; inset: 0; }
.content { position: relative; z-index: 1; }
.text, .message { display: -webkit-box; overflow: hidden; overflow-wrap: anywhere; white-space: pre-line; -webkit-box-orient: vertical;
  -webkit-line-clamp: 3; text-align: -webkit-match-parent; text-align: match-parent; }
.expanded :is(.text, .message) { display: block; }
.unread .text, .text:has(+ .message:not([hidden])) { font-weight: 600; }
.expand { position: relative; z-index: 1; margin-inline: -0.5rem; }
.actions { position: relative; z-index: 1; display: flex; flex-wrap: wrap; gap: 0.5rem; inline-size: fit-content; }
.action { min-block-size: 1.75rem; margin-block-start: 0.5rem; padding: 0.15rem 0.75rem; border: 1px solid var(--_line); border-radius: 0.5rem;
  background: var(--_surface); font-size: 0.875rem; font-weight: 600; overflow-wrap: anywhere; }
.action:hover { border-color: var(--_accent); color: var(--_accent); }
.title, .quiet, .time, .error span, .empty p, .status span { unicode-bidi: plaintext; text-align: -webkit-match-parent; text-align: match-parent; }
.time { display: block; margin-block-start: 0.1rem; color: var(--_muted); font-size: 0.8125rem; }
.toggle { position: relative; z-index: 1; display: grid; place-items: center; inline-size: 1.75rem; block-size: 1.75rem; border-radius: 50%; }
.dot { inline-size: 0.625rem; block-size: 0.625rem; border: 1.5px solid color-mix(in srgb, var(--_muted) 75%, var(--_surface));
  border-radius: 50%; }
.unread .dot { background: var(--_accent); }
.unread .dot, .row:hover .dot, .toggle:focus-visible .dot { border-color: var(--_accent); }
.toggle:hover { background: light-dark(#0000000f, #ffffff1a); }
.more { flex: none; inline-size: 100%; margin: 0; min-block-size: 2.75rem; border-radius: 0; text-align: center;
  border-block-start: 1px solid var(--_line); }
.more:focus-visible { outline-offset: -3px; }
.fresh { position: sticky; z-index: 2; inset-block-start: 0.5rem; flex: none; align-self: center; block-size: 2rem; margin-block-end: -2rem; padding: 0 1rem;
  border-radius: 1rem; background: var(--_accent); color: var(--_surface); box-shadow: var(--_shadow); font-size: 0.875rem; font-weight: 600; }
.skeleton { display: grid; padding: 1rem; gap: 1rem; }
.skeleton * { block-size: 2.25rem; border-radius: 1rem; background: var(--_hover); animation: wait 1s infinite alternate; }
.empty { display: grid; flex: 1; justify-items: center; align-content: center; gap: 0.75rem; min-block-size: 9rem; padding: 1.5rem; color: var(--_muted); text-align: center; }
.empty svg { inline-size: 2.25rem; block-size: 2.25rem; stroke-width: 1.3; }
.footer { display: flex; flex-wrap: wrap; align-items: center; gap: 0.25rem 0.75rem; min-block-size: 2.25rem; padding: 0.25rem 1rem;
  border-block-start: 1px solid var(--_line); color: var(--_muted); font-size: 0.8125rem; }
.status { display: flex; flex: 1 1 12rem; align-items: baseline; gap: 0.5rem; }
.status::before { content: ""; flex: none; inline-size: 0.5rem; block-size: 0.5rem; border-radius: 50%; background: var(--_muted); }
.status.live::before { background: var(--_good); }
.status.offline::before { background: var(--_warn); }
.status.connecting::before, .status.catching-up::before { animation: wait 1s infinite alternate; }
@keyframes wait { to { opacity: 0.25; } }
@media (prefers-reduced-motion: reduce) { *, ::before { transition: none !important; animation: none !important; } }
@media (forced-colors: active) {
  .badge, .icon, .panel { border: 1px solid; }
  .dot, .action { border-color: ButtonText; }
  .unread .dot, .status::before { forced-color-adjust: none; background: CanvasText; }
  .status.offline::before { border-radius: 0; }
  button:disabled { opacity: 1; color: GrayText; }
}
`;

let sheet: CSSStyleSheet | undefined;

/** The one sheet of all elements; made when the first one is, so that the module can be loaded where there is no DOM. */
export function style(): CSSStyleSheet {
  if (sheet) return sheet;
  sheet = new CSSStyleSheet();
  sheet.replaceSync(CSS);
  return sheet;
}
