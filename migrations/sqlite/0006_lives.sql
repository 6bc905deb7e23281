-- An inbox that was erased leaves nothing behind, and begins at rev 1 again. So that no client takes what it kept of the
-- former one for the new one, the epoch it is told has the inbox's `life` in it: how many were erased before it was made.
alter table meta add column erasures integer not null default 0;

alter table inbox add column life integer not null default 0;

-- The version before knows nothing of it.
create trigger inbox_life after insert on inbox when new.life <> (select erasures from meta)
begin
    update inbox set life = (select erasures from meta) where token = new.token;
end;
