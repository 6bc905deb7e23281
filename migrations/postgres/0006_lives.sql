-- An inbox that was erased leaves nothing behind, and begins at rev 1 again. So that no client takes what it kept of the
-- former one for the new one, the epoch it is told has the inbox's `life` in it: how many were erased before it was made.
alter table meta add column erasures bigint not null default 0;

alter table inbox add column life bigint not null default 0;

-- What a push took for that may be out of date when it waited for the erasing of the same inbox; and nodes of the version
-- before know nothing of it.
create function inbox_life() returns trigger language plpgsql as $$
begin
    update inbox set life = (select erasures from meta) where token = new.token and life <> (select erasures from meta);
    return null;
end
$$;

create trigger inbox_life after insert on inbox for each row execute function inbox_life();
