-- Who may do what over the network. The token itself is nowhere: a row has its SHA-256.
create table tide_token (
    hash       blob    not null,
    name       text    not null,                -- both secrets of a rotation have it
    scopes     text    not null,                -- JSON
    tenant     text    not null,                -- a pattern; '' is the default tenant alone
    created_at integer not null,
    expires_at integer,
    revoked_at integer,
    seal       integer not null,
    primary key (hash)
) strict, without rowid;
create index tide_token_by_name on tide_token (name);
