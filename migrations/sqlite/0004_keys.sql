-- API keys of producers. Only the lower-case hex SHA-256 of a key is kept; `scopes` is a list with commas of push, read, admin.
-- A name is used once: revoked keys stay.
create table api_key (
    name text not null primary key,
    sha256 text not null unique,
    scopes text not null,
    created_at text not null,
    expires_at text,
    last_used_at text,
    revoked_at text
) strict;
