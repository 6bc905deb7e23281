-- What an inbox is besides a list: groups, rows that replace each other, rows that come later, rows that go.

-- Of a row with a `group_key`: how many acted, and the last three of them, newest first, as a JSON list.
alter table notification add column group_count integer;
alter table notification add column group_actors text;

-- Only rows with a time to live stand in it.
create index notification_expiry on notification (expires_at) where expires_at is not null;

-- The newest row of an inbox with that collapse or group key. It is no longer the key's when it was read or is gone.
create table notification_key (
    token text not null,
    kind text not null,
    key text not null,
    seq integer not null,
    primary key (token, kind, key)
) strict, without rowid;

-- Who stands behind the row of a group; `rev` is when they last acted.
create table notification_actor (
    token text not null,
    seq integer not null,
    actor text not null,
    rev integer not null,
    primary key (token, seq, actor)
) strict, without rowid;

-- Pushes for later, a row per token. When it is due the row becomes one of `notification`, in one transaction.
create table scheduled (
    id text not null,
    token text not null,
    due_at text not null,
    entity_type text not null,
    ttl_secs integer,
    collapse_key text,
    group_key text,
    actor text,
    created_at text not null,
    data text not null,
    primary key (id, token)
) strict;

create index scheduled_due on scheduled (due_at);
create index scheduled_token on scheduled (token);

-- Rows that were retracted are nobody's any more.
drop view undelivered;

create view undelivered as
select token, count(*) as undelivered, min(created_at) as since from notification
where delivered_at is null and retracted_at is null group by token;
