-- What admins ask most, the same in both databases.

-- Who has how much undelivered, and since when.
create view undelivered as
select token, count(*) as undelivered, min(created_at) as since from notification where delivered_at is null group by token;

-- Each delivered row with the seconds it took.
create view delivery as
select token, seq, id, entity_type, created_at, delivered_at,
    round((julianday(delivered_at) - julianday(created_at)) * 86400, 3) as seconds
from notification where delivered_at is not null;

-- Each push with how far it got.
create view push as
select id, entity_type, min(created_at) as created_at, count(*) as sent, count(delivered_at) as delivered,
    count(read_at) as read
from notification group by id, entity_type;

-- Pushes and rows an hour.
create view hourly as
select substr(created_at, 1, 13) as hour, count(distinct id) as pushes, count(*) as sent from notification group by 1;
