//! The statements that a group runs for every item, at hand.
//!
//! Looking a statement up in the connection's cache hashes its text and copies it, which costs about as much as running a
//! small one. So a group takes each that it needs out of the cache once, by the address of its text, and gives all of them
//! back before its commit.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};

use rusqlite::{CachedStatement, Connection, Statement, StatementStatus};

/// Statements of one connection, kept at hand.
pub(crate) struct Statements<'c> {
    conn: &'c Connection,
    kept: RefCell<Vec<Kept<'c>>>,
    /// Steps of those that were not kept because they were in use already.
    steps: Cell<u64>,
}

struct Kept<'c> {
    sql: &'static str,
    /// None while it is lent.
    statement: Option<CachedStatement<'c>>,
}

impl<'c> Statements<'c> {
    pub(crate) fn of(conn: &'c Connection) -> Self {
        Self { conn, kept: RefCell::default(), steps: Cell::new(0) }
    }

    /// The statement with this text. Values bound to it before are bound still, so that all of them are bound each time.
    pub(crate) fn get(&self, sql: &'static str) -> rusqlite::Result<Lent<'_, 'c>> {
        let mut kept = self.kept.borrow_mut();
        let (place, statement) = match kept.iter_mut().position(|kept| std::ptr::eq(kept.sql, sql)) {
            Some(place) => (place, kept[place].statement.take()),
            None => {
                kept.push(Kept { sql, statement: None });
                (kept.len() - 1, None)
            }
        };
        drop(kept);
        let statement = match statement {
            Some(statement) => statement,
            None => {
                let statement = self.conn.prepare_cached(sql)?;
                // What it did before is not this group's.
                steps(&statement);
                statement
            }
        };
        Ok(Lent { of: self, place, statement: Some(statement) })
    }

    /// How many steps the virtual machine of SQLite took in them since the last look: what a neighbour on the machine
    /// does not change.
    pub(crate) fn take_steps(&self) -> u64 {
        let kept = self.kept.borrow();
        kept.iter().filter_map(|kept| kept.statement.as_ref()).map(|statement| steps(statement)).sum::<u64>()
            + self.steps.take()
    }
}

fn steps(statement: &Statement<'_>) -> u64 {
    u64::try_from(statement.reset_status(StatementStatus::VmStep)).unwrap_or_default()
}

/// A statement in use; given back when it is dropped.
pub(crate) struct Lent<'s, 'c> {
    of: &'s Statements<'c>,
    place: usize,
    statement: Option<CachedStatement<'c>>,
}

impl<'c> Deref for Lent<'_, 'c> {
    type Target = Statement<'c>;

    fn deref(&self) -> &Statement<'c> {
        self.statement.as_ref().expect("it is lent until it is dropped")
    }
}

impl DerefMut for Lent<'_, '_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.statement.as_mut().expect("it is lent until it is dropped")
    }
}

impl Drop for Lent<'_, '_> {
    fn drop(&mut self) {
        let kept = &mut self.of.kept.borrow_mut()[self.place].statement;
        let statement = self.statement.take();
        match kept {
            None => *kept = statement,
            // A second one of the same text was needed meanwhile.
            Some(_) => {
                let used = statement.as_deref().map(steps).unwrap_or_default();
                self.of.steps.set(self.of.steps.get() + used);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "select ?1";

    #[test]
    fn a_statement_that_is_in_use_can_be_used_again_inside() {
        let conn = Connection::open_in_memory().unwrap();
        let statements = Statements::of(&conn);
        let mut outer = statements.get(ONE).unwrap();
        let mut rows = outer.query([1]).unwrap();
        assert_eq!(rows.next().unwrap().unwrap().get::<_, i64>(0).unwrap(), 1);
        let inner: i64 = statements.get(ONE).unwrap().query_row([2], |row| row.get(0)).unwrap();
        assert_eq!(inner, 2);
        assert!(rows.next().unwrap().is_none());
    }

    #[test]
    fn steps_are_counted_once() {
        let conn = Connection::open_in_memory().unwrap();
        let statements = Statements::of(&conn);
        // What an earlier group of this connection ran is not this one's.
        let _before: i64 = conn.prepare_cached(ONE).unwrap().query_row([1], |row| row.get(0)).unwrap();
        for _ in 0..3 {
            let _one: i64 = statements.get(ONE).unwrap().query_row([1], |row| row.get(0)).unwrap();
        }
        let steps = statements.take_steps();
        assert!(steps > 0);
        assert_eq!(statements.take_steps(), 0);
        for _ in 0..3 {
            let _one: i64 = statements.get(ONE).unwrap().query_row([1], |row| row.get(0)).unwrap();
        }
        assert_eq!(statements.take_steps(), steps, "the same work, the same steps");
    }
}
