-- Room in the pages for receipts, which only Postgres needs: SQLite changes a row where it is.
select 1;
