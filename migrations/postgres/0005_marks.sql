-- Everything of an inbox at or below `read_upto` is read or gone, so whoever looks for unread rows begins behind it.
alter table inbox add column read_upto bigint not null default 0;

-- Whoever makes a row unread again lowers the mark, be it an admin or a node of the version before.
create function notification_unread() returns trigger language plpgsql as $$
begin
    update inbox set read_upto = new.seq - 1 where token = new.token and read_upto >= new.seq;
    return null;
end
$$;

create trigger notification_unread after update of read_at on notification for each row
when (new.read_at is null and old.read_at is not null) execute function notification_unread();

-- What was retracted is found without reading what was not.
create index notification_retracted on notification (token, seq, retracted_at) where retracted_at is not null;

-- The last of a group are found without sorting all of them.
create index notification_actor_last on notification_actor (token, seq, rev);
