-- Each row is updated when it is delivered and again when it is read, with no indexed column changed. In a page that was
-- filled to the half both new versions find room beside the old ones, so no index is written for them (HOT). A table whose
-- pages are full holds those versions in pages of their own, and is as large in the end.
alter table notification set (fillfactor = 50);
