-- What is due is found in the order in which it is released, however much of it is due at one instant.
drop index scheduled_due;

create index scheduled_due on scheduled (due_at, id, token);
