-- An inbox that was erased leaves nothing behind, and begins at rev 1 again. So that no client takes what it kept of the
-- former one for the new one, the epoch it is told has the inbox's `life` in it: how many were erased before it was made.
alter table meta add column erasures bigint not null default 0;

alter table inbox add column life bigint not null default 0;
