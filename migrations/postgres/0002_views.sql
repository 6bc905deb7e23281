-- What admins ask most, the same in both databases.

-- Who has how much undelivered, and since when.
create view undelivered as
select token, count(*) as undelivered, min(created_at) as since from notification where delivered_at is null group by token;

-- Each delivered row with the seconds it took.
create view delivery as
select token, seq, id, entity_type, created_at, delivered_at,
    round(extract(epoch from delivered_at - created_at)::numeric, 3) as seconds
from notification where delivered_at is not null;

-- Each push with how far it got.
create view push as
select id, entity_type, min(created_at) as created_at, count(*) as sent, count(delivered_at) as delivered,
    count(read_at) as read
from notification group by id, entity_type;

-- Pushes and rows an hour.
create view hourly as
select to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24') as hour, count(distinct id) as pushes, count(*) as sent
from notification group by 1;
