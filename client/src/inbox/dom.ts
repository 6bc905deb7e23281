// Makes elements without HTML: text is only ever set as text. The icons are drawn here, 24 units square.

import { ISOLATED } from "./isolate.js";

type Attributes = Readonly<Record<string, string | boolean>>;

/** An element; true sets an empty attribute, false leaves it out. `class` is also its part, unless a part is given or false. */
export function make<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  attributes: Attributes = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[Name] {
  const element = document.createElement(name);
  set(element, attributes);
  if (attributes.class && attributes.part === undefined) element.setAttribute("part", String(attributes.class));
  element.append(...children);
  return element;
}

/** A button that does this. */
export function button(attributes: Attributes, onclick: () => void, ...children: (Node | string)[]): HTMLButtonElement {
  const element = make("button", { type: "button", ...attributes }, ...children);
  element.addEventListener("click", onclick);
  return element;
}

export function set(element: Element, attributes: Attributes): void {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false) element.removeAttribute(name);
    else element.setAttribute(name, value === true ? "" : value);
  }
}

/** An image of somebody's choice: it is asked for when it comes into view, and is not told which page shows it. */
export function image(src: string, onerror: () => void): HTMLImageElement {
  const element = make("img", { class: "image", alt: "", decoding: "async", loading: "lazy", referrerpolicy: "no-referrer" });
  element.addEventListener("error", onerror);
  element.src = src;
  return element;
}

/** Sets a text where it differs, so that screen readers and selections are not disturbed. */
export function say(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

/** The same, where each isolated part becomes a <bdi>: nothing in it changes the direction of what stands around. */
export function sayIsolated(element: Element, text: string): void {
  const parts = text.split(ISOLATED);
  if (element.textContent === parts.join("")) return;
  element.replaceChildren(...parts.map((part, at) => (at % 2 === 1 ? make("bdi", {}, part) : part)));
}

const ICONS = {
  bell: "M18 9a6 6 0 0 0-12 0c0 6-2.5 7-2.5 8h17c0-1-2.5-2-2.5-8 M10 20.5a2.2 2.2 0 0 0 4 0",
  like: "M12 20s-7.5-4.6-7.5-10.2A4.1 4.1 0 0 1 12 7.5a4.1 4.1 0 0 1 7.5 2.3C19.5 15.4 12 20 12 20Z",
  comment: "M4.5 6.5a2 2 0 0 1 2-2h11a2 2 0 0 1 2 2v7.5a2 2 0 0 1-2 2H11l-4.5 3.5v-3.5a2 2 0 0 1-2-2Z",
  follow:
    "M15.5 19.5v-1a4 4 0 0 0-4-4H7a4 4 0 0 0-4 4v1 M9.2 11a3.3 3.3 0 1 0 0-6.6 3.3 3.3 0 0 0 0 6.6Z M18.5 8.5v5 M16 11h5",
  close: "M6 6l12 12 M18 6L6 18",
} as const;

export type IconName = keyof typeof ICONS;

/** The icon of an `entityType`. */
export const iconOf = (entityType: string): IconName =>
  entityType === "like" || entityType === "comment" || entityType === "follow" ? entityType : "bell";

export function icon(name: IconName): SVGSVGElement {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  set(svg, { viewBox: "0 0 24 24", "aria-hidden": "true" });
  set(path, { d: ICONS[name] });
  svg.append(path);
  return svg;
}
