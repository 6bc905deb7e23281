-- The notification table and what keeps it exact. Timestamps are UTC text, `2026-01-02T03:04:05.678Z`, bound by the service.

-- One row per token. `rev` counts every event of the inbox, `unread` the rows with `read_at` null; both change in the
-- transaction that changes the rows. Everything at or below `delivered_upto` is delivered.
create table inbox (
    token text not null primary key,
    rev integer not null default 0,
    unread integer not null default 0,
    delivered_upto integer not null default 0,
    purged_rev integer not null default 0,
    created_at text not null
) strict, without rowid;

-- One row per token of a push. `data` comes last: it may spill into overflow pages, which a scan that only looks at the
-- receipts then never reads.
create table notification (
    token text not null,
    seq integer not null,
    id text not null,
    entity_type text not null,
    collapse_key text,
    group_key text,
    created_at text not null,
    expires_at text,
    delivered_at text,
    read_at text,
    retracted_at text,
    data text not null,
    primary key (token, seq),
    unique (id, token)
) strict;

-- What happened at a rev to rows that were already there: {"read":["<id>"],"unread":3} or {"readUpTo":17,"unread":0}.
create table inbox_change (
    token text not null,
    rev integer not null,
    change text not null,
    at text not null,
    primary key (token, rev)
) strict, without rowid;

-- Answers to pushes that carried an Idempotency-Key, kept until `expires_at`.
create table idempotency (
    key_owner text not null,
    key text not null,
    body_sha256 text not null,
    response text not null,
    expires_at text not null,
    primary key (key_owner, key)
) strict, without rowid;

create index idempotency_expiry on idempotency (expires_at);

-- The one row that names this data set. Clients that kept a cursor from another epoch must list their inbox again.
create table meta (
    epoch text not null
) strict;
