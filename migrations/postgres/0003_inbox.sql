-- What an inbox is besides a list: groups, rows that replace each other, rows that come later, rows that go.

-- Of a row with a `group_key`: how many acted, and the last three of them, newest first, as a JSON list.
alter table notification add column group_count bigint, add column group_actors json;

-- Only rows with a time to live stand in it.
create index notification_expiry on notification (expires_at) where expires_at is not null;

-- The newest row of an inbox with that collapse or group key. It is no longer the key's when it was read or is gone.
create table notification_key (
    token text collate "C" not null,
    kind text not null,
    key text collate "C" not null,
    seq bigint not null,
    primary key (token, kind, key)
);

-- Who stands behind the row of a group; `rev` is when they last acted.
create table notification_actor (
    token text collate "C" not null,
    seq bigint not null,
    actor text collate "C" not null,
    rev bigint not null,
    primary key (token, seq, actor)
);

-- Pushes for later, a row per token. When it is due the row becomes one of `notification`, in one transaction.
create table scheduled (
    id uuid not null,
    token text collate "C" not null,
    due_at timestamptz not null,
    entity_type text not null,
    ttl_secs bigint,
    collapse_key text,
    group_key text,
    actor text,
    created_at timestamptz not null,
    data json not null,
    primary key (id, token)
);

create index scheduled_due on scheduled (due_at);
create index scheduled_token on scheduled (token);

-- Rows that were retracted are nobody's any more.
create or replace view undelivered as
select token, count(*) as undelivered, min(created_at) as since from notification
where delivered_at is null and retracted_at is null group by token;
