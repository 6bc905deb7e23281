// Why something failed, for languages other than the server's: its messages are English, its codes are not.

export type Reason = "network" | "timeout" | "busy" | "limited" | "login" | "outdated" | "pending" | "storage" | "closed";

const REASONS: Readonly<Record<string, Reason>> = {
  network: "network",
  timeout: "timeout",
  busy: "busy",
  draining: "busy",
  outcome_unknown: "busy",
  unfinished: "busy",
  storage_full: "busy",
  storage_unavailable: "busy",
  unavailable: "busy",
  rate_limited: "limited",
  too_many_events: "limited",
  too_many_sockets: "limited",
  credential: "login",
  foreign_host: "login",
  foreign_origin: "login",
  login_expired: "login",
  not_logged_in: "login",
  proxied: "login",
  unauthorized: "login",
  outdated: "outdated",
  too_many_pending: "pending",
  storage: "storage",
  closed: "closed",
};

/** The reasons of a language by the codes of errors. */
export const byCode = (reasons: Readonly<Record<Reason, string>>): Readonly<Record<string, string>> =>
  Object.fromEntries(Object.entries(REASONS).map(([code, reason]) => [code, reasons[reason]]));
