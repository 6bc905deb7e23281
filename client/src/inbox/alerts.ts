// What tells of a notification beyond the list: toasts, a sound, and notifications of the browser. All of it is off unless
// the page asks for it, so this module is loaded only then.

import { button, icon, make, set } from "./dom.js";

const TOAST_MS = 7000;
const TOASTS = 3; // at a time; older ones give way
const RESUME_MS = 500; // a sound that comes later than this is about nothing that is seen

const CSS = `
.toasts { position: fixed; inset-block: auto 1rem; inset-inline: auto 1rem; margin: 0; padding: 0; border: 0; background: none; overflow: visible;
  inline-size: min(var(--_width), 100vw - 2rem); color: var(--_text); list-style: none; }
:host([mode=light]) .toasts { color-scheme: light; }
:host([mode=dark]) .toasts { color-scheme: dark; }
:host([mode=auto]) .toasts { color-scheme: light dark; }
.toasts:popover-open { display: grid; gap: 0.5rem; }
.toasts .row { grid-template-columns: auto minmax(0, 1fr) auto auto; border: 1px solid var(--_line); border-radius: var(--_radius);
  background: var(--_surface); box-shadow: var(--_shadow); transition: opacity 0.12s, translate 0.12s; }
.toasts .row:hover { background: var(--_hover); }
@starting-style { .toasts .row { opacity: 0; translate: 0 0.4rem; } }
.toasts .close svg { inline-size: 1rem; block-size: 1rem; }
`;

export class Toasts {
  readonly element = make("ul", { class: "toasts", role: "list", popover: "manual" });
  readonly sheet = new CSSStyleSheet();

  constructor() {
    this.sheet.replaceSync(CSS);
  }

  /** Shows a row for some seconds, longer while it is pointed at or has the focus; returns what closes it. */
  show(row: HTMLElement, names: { title: string; dismiss: string }): () => void {
    let timer: ReturnType<typeof setTimeout>;
    const close = () => {
      clearTimeout(timer);
      row.remove();
      if (this.element.childElementCount === 0) this.#hide();
    };
    const wait = () => {
      clearTimeout(timer);
      timer = setTimeout(() => (row.matches(":hover, :focus-within") ? wait() : close()), TOAST_MS);
    };
    set(this.element, { "aria-label": names.title });
    row.append(button({ class: "toggle close", part: "dismiss", "aria-label": names.dismiss }, close, icon("close")));
    row.addEventListener("keydown", (event) => event.key === "Escape" && close());
    this.element.append(row);
    if (this.element.childElementCount > TOASTS) this.element.firstElementChild?.remove();
    this.#hide();
    this.element.showPopover(); // above whatever was opened meanwhile
    wait();
    return close;
  }

  #hide(): void {
    if (this.element.matches(":popover-open")) this.element.hidePopover();
  }
}

let audio: AudioContext | undefined;

/** Two short tones; nothing where the browser allows none yet, as before the first click. */
export async function playSound(): Promise<void> {
  if (typeof AudioContext === "undefined" || navigator.userActivation?.hasBeenActive === false) return;
  audio ??= new AudioContext();
  await Promise.race([audio.resume(), new Promise((resolve) => setTimeout(resolve, RESUME_MS))]);
  if (audio.state !== "running") return;
  const gain = new GainNode(audio, { gain: 0 });
  gain.connect(audio.destination);
  for (const [at, frequency] of [[0, 660], [0.12, 880]] as const) {
    const tone = new OscillatorNode(audio, { frequency });
    const start = audio.currentTime + at;
    gain.gain.setValueAtTime(0.08, start).linearRampToValueAtTime(0, start + 0.12);
    tone.connect(gain);
    tone.start(start);
    tone.stop(start + 0.12);
  }
}

/** Resolves when this page could show notifications, if it was allowed to. On Android only a service worker can. */
export async function notifiable(): Promise<void> {
  try {
    // Nothing is shown while nothing is allowed; where pages may never show one it throws.
    if (Notification.permission === "default") new Notification("").close?.();
  } catch {
    await navigator.serviceWorker.ready; // for good, where there is none
  }
}

export async function notify(title: string, options: NotificationOptions, onclick: () => void): Promise<void> {
  try {
    new Notification(title, options).onclick = onclick;
  } catch {
    // Its click goes to the worker, with the options' data.
    await (await navigator.serviceWorker?.getRegistration())?.showNotification(title, options);
  }
}
