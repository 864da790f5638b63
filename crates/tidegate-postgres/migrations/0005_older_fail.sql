-- Programs that do not know step 4 take a null for a damaged row, and set its message aside. None of them may claim again, wherever
-- it comes back from: every claim of theirs names this column, and the server refuses it. No row is rewritten, and what a message's
-- limit means stays as it was.
alter table tidegate.message rename column max_age_ms to age_limit_ms;
do $$
begin
    execute replace(pg_get_functiondef('tidegate.take'::regproc), 'max_age_ms', 'age_limit_ms');
end $$;
