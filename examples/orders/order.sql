-- An order and the message that ships it, by any language that can send a statement:
--     psql postgres://… -v ON_ERROR_STOP=1 -f order.sql
begin;
insert into orders (id, cents) values (7, 1200);
select id, is_new, state from tidegate.enqueue('ship', 'ship', 'order-7', '{"order": 7}');
commit;
