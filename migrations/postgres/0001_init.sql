-- The notification table and what keeps it exact, as in SQLite. Tokens compare byte by byte, whatever the database's
-- locale: every statement that locks inboxes does so in that order.

-- One row per token. `rev` counts every event of the inbox, `unread` the rows with `read_at` null; both change in the
-- transaction that changes the rows. Everything at or below `delivered_upto` is delivered. Pages stay half empty, so that
-- a new version of a row finds room beside the old one and no index changes.
create table inbox (
    token text collate "C" not null primary key,
    rev bigint not null default 0,
    unread bigint not null default 0,
    delivered_upto bigint not null default 0,
    purged_rev bigint not null default 0,
    created_at timestamptz not null
) with (fillfactor = 50);

-- One row per token of a push.
create table notification (
    token text collate "C" not null,
    seq bigint not null,
    id uuid not null,
    entity_type text not null,
    collapse_key text,
    group_key text,
    created_at timestamptz not null,
    expires_at timestamptz,
    delivered_at timestamptz,
    read_at timestamptz,
    retracted_at timestamptz,
    data json not null,
    primary key (token, seq),
    unique (id, token)
) with (fillfactor = 90);

-- What happened at a rev to rows that were already there: {"read":["<id>"],"unread":3} or {"readUpTo":17,"unread":0}.
create table inbox_change (
    token text collate "C" not null,
    rev bigint not null,
    change json not null,
    at timestamptz not null,
    primary key (token, rev)
);

-- Answers to pushes that carried an Idempotency-Key, kept until `expires_at`.
create table idempotency (
    key_owner text collate "C" not null,
    key text collate "C" not null,
    body_sha256 text not null,
    response json not null,
    expires_at timestamptz not null,
    primary key (key_owner, key)
);

create index idempotency_expiry on idempotency (expires_at);

-- The one row that names this data set. Clients that kept a cursor from another epoch must list their inbox again.
create table meta (
    epoch text not null
);

create unique index meta_has_one_row on meta ((true));
