-- Who may do what over the network. The token itself is nowhere: a row has its SHA-256.
create table tidegate.token (
    hash       bytea  primary key,
    name       text   not null,                 -- both secrets of a rotation have it
    scopes     text   not null,                 -- JSON
    tenant     text   not null,                 -- a pattern; '' is the default tenant alone
    created_at bigint not null,
    expires_at bigint,
    revoked_at bigint
);
create index token_by_name on tidegate.token (name);
