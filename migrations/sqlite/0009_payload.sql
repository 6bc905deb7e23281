-- The `data` of a push that has more bytes for all its tokens than one transaction takes is stored once, here, by the id that its
-- rows share. Such a row has `null ` in its place, with a space at the end, which the `data` of no push has.
create table notification_payload (
    id text not null primary key,
    data text not null
) strict;

-- It goes with the last row of the push, whoever removes that.
create trigger payload_of_notification after delete on notification when old.data = 'null '
begin
    delete from notification_payload where id = old.id and not exists (select 1 from notification where id = old.id)
        and not exists (select 1 from scheduled where id = old.id);
end;

create trigger payload_of_scheduled after delete on scheduled when old.data = 'null '
begin
    delete from notification_payload where id = old.id and not exists (select 1 from notification where id = old.id)
        and not exists (select 1 from scheduled where id = old.id);
end;

-- Every row of `notification` with its `data`, wherever that is stored.
create view notification_with_payload as
select token, seq, notification.id, entity_type, collapse_key, group_key, created_at, expires_at, delivered_at, read_at,
    retracted_at, iif(notification.data = 'null ', payload.data, notification.data) as data, group_count, group_actors
from notification left join notification_payload as payload on payload.id = notification.id and notification.data = 'null ';
