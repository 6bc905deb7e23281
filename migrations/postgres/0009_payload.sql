-- The `data` of a push that has more bytes for all its tokens than one transaction takes is stored once, here, by the id that its
-- rows share. Such a row has `null ` in its place, with a space at the end, which the `data` of no push has.
create table notification_payload (
    id uuid not null primary key,
    data json not null
);

-- It goes with the last row of the push, whoever removes that. The lock has those who remove the last two at once come one
-- after the other, so that the second sees that there is no other.
create function payload_is_left() returns trigger language plpgsql as $$
begin
    perform from notification_payload where id = old.id for update;
    delete from notification_payload where id = old.id and not exists (select from notification where id = old.id)
        and not exists (select from scheduled where id = old.id);
    return null;
end
$$;

create trigger payload_of_notification after delete on notification for each row
when (old.data::text = 'null ') execute function payload_is_left();

create trigger payload_of_scheduled after delete on scheduled for each row
when (old.data::text = 'null ') execute function payload_is_left();

-- Every row of `notification` with its `data`, wherever that is stored.
create view notification_with_payload as
select token, seq, notification.id, entity_type, collapse_key, group_key, created_at, expires_at, delivered_at, read_at,
    retracted_at, case when notification.data::text = 'null ' then payload.data else notification.data end as data,
    group_count, group_actors
from notification left join notification_payload as payload on payload.id = notification.id and notification.data::text = 'null ';
