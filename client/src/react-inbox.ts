// <TidingsInbox>: the element as a React component. React before 19 knows attributes of elements only, so what is no
// text is set as a property here, and events are listened to.

import { createElement, type ForwardedRef, forwardRef, type HTMLAttributes, useEffect, useImperativeHandle, useLayoutEffect, useRef } from "react";

import { type InboxElementEvents, TidingsInbox as Element } from "./inbox/index.js";

const FLAGS = ["inline", "notify", "silent", "sound", "toasts"] as const;
const VALUES = ["client", "credential", "strings", "renderItem"] as const;
const EVENTS = {
  onItem: "tidings-item",
  onAction: "tidings-action",
  onNavigate: "tidings-navigate",
  onOpen: "tidings-open",
  onToast: "tidings-toast",
} as const satisfies Record<string, keyof InboxElementEvents>;

type Flags = { [Name in (typeof FLAGS)[number]]?: boolean | undefined };
type Values = { [Name in (typeof VALUES)[number]]?: Element[Name] };
type Handlers = { [Name in keyof typeof EVENTS]?: ((event: InboxElementEvents[(typeof EVENTS)[Name]]) => void) | undefined };
type Attributes = { [Name in "token" | "url" | "path" | "theme"]?: string | undefined } & { mode?: "light" | "dark" | "auto" | undefined };

export interface TidingsInboxProps
  extends Flags,
    Values,
    Handlers,
    Attributes,
    Omit<HTMLAttributes<Element>, keyof Flags | keyof Values | keyof Handlers | keyof Attributes> {}

// On the server there is nothing to set, and React 18 warns of layout effects there.
const useEarlyEffect = typeof document === "undefined" ? useEffect : useLayoutEffect;

export const TidingsInbox = forwardRef(function TidingsInbox(props: TidingsInboxProps, ref: ForwardedRef<Element>) {
  const element = useRef<Element>(null);
  useImperativeHandle(ref, () => element.current!, []);

  const newest = useRef(props);
  useEarlyEffect(() => void (newest.current = props));
  useEarlyEffect(() => {
    const at = element.current!;
    const offs = Object.entries(EVENTS).map(([prop, name]) => {
      const listener = (event: Event) => (newest.current[prop as keyof Handlers] as ((event: Event) => void) | undefined)?.(event);
      at.addEventListener(name, listener);
      return () => at.removeEventListener(name, listener);
    });
    return () => offs.forEach((off) => off());
  }, []);
  // A function that is written in place is another at each render, which is no reason to log in anew.
  const login = useRef(() => {
    const { credential } = newest.current;
    return typeof credential === "function" ? credential() : credential!;
  });
  const values = { ...props, credential: props.credential && login.current };
  for (const name of VALUES) {
    const value = values[name];
    const isSet = useRef(false);
    useEarlyEffect(() => {
      // What is undefined from the start is left alone; later it takes back what was set.
      if (value !== undefined || isSet.current) (element.current as unknown as Record<string, unknown>)[name] = value;
      isSet.current ||= value !== undefined;
    }, [value]);
  }

  const attributes: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(props)) {
    if (name in EVENTS || (VALUES as readonly string[]).includes(name)) continue;
    if ((FLAGS as readonly string[]).includes(name)) attributes[name] = value ? "" : undefined;
    else attributes[name === "className" ? "class" : name] = value; // React 18 does not translate it here
  }
  return createElement("tidings-inbox", { ...attributes, ref: element });
});
