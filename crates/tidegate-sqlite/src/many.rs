//! Inserts of several rows by one statement.
//!
//! To begin a statement, open its tables, find the place in each of their trees, and end it costs more than a third of what
//! a row costs. Where a batch is known beforehand that is paid once for several rows; a tree whose rows come in its own
//! order is then also descended once. What all rows of a batch have in common is bound once, and sealed once.
//!
//! They say `insert or fail`: a statement of several rows that could undo the first of them copies each page before it
//! writes to it. Nothing here needs that, because a failure of SQLite ends the whole group.

use std::sync::OnceLock;

use rusqlite::Statement;
use rusqlite::types::{Null, ValueRef};

use crate::group::Group;
use crate::seal::{self, Sealed};

/// How many rows one statement takes. What is left of a batch goes one by one. With more, SQLite's own small memory (the
/// look-aside) is not enough for the values that are bound, and each costs a call of the allocator: measured at 64.
const SIZES: [usize; 2] = [16, 4];

/// What one column holds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cell<'a> {
    Null,
    Int(i64),
    Text(&'a str),
    Blob(&'a [u8]),
}

impl Cell<'_> {
    fn part(self, place: usize) -> u64 {
        let value = match self {
            Self::Null => ValueRef::Null,
            Self::Int(number) => ValueRef::Integer(number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        };
        seal::part(place, value)
    }

    fn bind(self, statement: &mut Statement<'_>, parameter: usize) -> rusqlite::Result<()> {
        match self {
            Self::Null => statement.raw_bind_parameter(parameter, Null),
            Self::Int(number) => statement.raw_bind_parameter(parameter, number),
            Self::Text(text) => statement.raw_bind_parameter(parameter, text),
            Self::Blob(bytes) => statement.raw_bind_parameter(parameter, bytes),
        }
    }
}

/// An insert, by the places of the sealed columns.
#[derive(Debug)]
pub(crate) struct Many<const SHARED: usize, const EACH: usize> {
    pub(crate) sealed: Sealed,
    /// The statement for one row. Its first parameters are the shared columns, then come a row's own, then the seal.
    pub(crate) sql: &'static str,
    /// Columns that have one value in all rows of a batch.
    pub(crate) shared: [usize; SHARED],
    /// Columns of which each row has its own.
    pub(crate) each: [usize; EACH],
    /// Columns that the statement names itself, with what it says there.
    pub(crate) literal: &'static [(usize, Cell<'static>)],
    pub(crate) made: [OnceLock<String>; SIZES.len()],
}

/// No statement made yet.
pub(crate) const fn unmade() -> [OnceLock<String>; SIZES.len()] {
    [const { OnceLock::new() }; SIZES.len()]
}

impl<const SHARED: usize, const EACH: usize> Many<SHARED, EACH> {
    /// Inserts the rows; says how many were.
    pub(crate) fn insert(
        &'static self,
        group: &Group<'_>,
        shared: [Cell<'_>; SHARED],
        rows: &[[Cell<'_>; EACH]],
    ) -> rusqlite::Result<usize> {
        debug_assert!(self.covers(), "{}: each sealed column once", self.sql);
        let common = self.shared.iter().zip(&shared).chain(self.literal.iter().map(|(place, cell)| (place, cell)));
        let common = common.fold(0, |seal, (place, cell)| seal ^ cell.part(*place));
        let (mut left, mut inserted) = (rows, 0);
        while !left.is_empty() {
            let (sql, size) = self.statement(left.len());
            let (now, later) = left.split_at(size);
            left = later;
            let mut statement = group.sql(sql)?;
            for (at, cell) in shared.iter().enumerate() {
                cell.bind(&mut statement, at + 1)?;
            }
            let mut parameter = SHARED + 1;
            for row in now {
                let mut seal = common;
                for (place, cell) in self.each.iter().zip(row) {
                    seal ^= cell.part(*place);
                    cell.bind(&mut statement, parameter)?;
                    parameter += 1;
                }
                statement.raw_bind_parameter(parameter, seal.cast_signed())?;
                parameter += 1;
            }
            inserted += statement.raw_execute()?;
            // So that the memory of these values serves the next ones.
            statement.clear_bindings();
        }
        Ok(inserted)
    }

    /// The statement for as many of so many rows as one takes.
    fn statement(&'static self, rows: usize) -> (&'static str, usize) {
        let fitting = SIZES.iter().zip(&self.made).find(|(size, _)| **size <= rows);
        match fitting {
            Some((size, made)) => (made.get_or_init(|| self.of_rows(*size)), *size),
            None => (self.sql, 1),
        }
    }

    /// The statement for several rows: the row of the one, again and again, each with parameters of its own.
    fn of_rows(&self, rows: usize) -> String {
        const VALUES: &str = "values (";
        let begin = self.sql.rfind(VALUES).map_or(0, |at| at + VALUES.len());
        let end = self.sql[begin..].find(')').map_or(self.sql.len(), |length| begin + length);
        let row = &self.sql[begin..end];
        let own = EACH + 1;
        let mut sql = self.sql[..begin - 1].to_owned();
        for number in 0..rows {
            sql.push_str(if number == 0 { "(" } else { ", (" });
            for (at, column) in row.split(", ").enumerate() {
                if at > 0 {
                    sql.push_str(", ");
                }
                let parameter: Option<usize> = column.strip_prefix('?').and_then(|digits| digits.parse().ok());
                match parameter.filter(|parameter| *parameter > SHARED) {
                    Some(parameter) => sql.push_str(&format!("?{}", parameter + number * own)),
                    None => sql.push_str(column),
                }
            }
            sql.push(')');
        }
        sql.push_str(&self.sql[end + 1..]);
        sql
    }

    fn covers(&self) -> bool {
        let literal = self.literal.iter().map(|(place, _)| place);
        let mut places: Vec<usize> = self.shared.iter().chain(&self.each).chain(literal).copied().collect();
        places.sort_unstable();
        places.into_iter().eq(self.sealed.from..self.sealed.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static SAMPLE: Many<1, 2> = Many {
        sealed: seal::KEY,
        sql: "-- sample (of a row)
            insert into sample (a, b) values (?2, ?1, null, ?3, ?4) on conflict (a, b) do nothing",
        shared: [1],
        each: [0, 3],
        literal: &[(2, Cell::Null)],
        made: unmade(),
    };

    #[test]
    fn rows_share_what_they_have_in_common_and_nothing_else() {
        assert!(SAMPLE.covers());
        assert_eq!(
            SAMPLE.of_rows(3).lines().last().unwrap().trim(),
            "insert into sample (a, b) values (?2, ?1, null, ?3, ?4), (?5, ?1, null, ?6, ?7), (?8, ?1, null, ?9, ?10) \
             on conflict (a, b) do nothing"
        );
    }

    #[test]
    fn a_batch_is_taken_in_the_largest_statements_that_fit() {
        let sizes = |mut rows: usize| {
            let mut sizes = Vec::new();
            while rows > 0 {
                let (_, size) = SAMPLE.statement(rows);
                sizes.push(size);
                rows -= size;
            }
            sizes
        };
        assert_eq!(sizes(38), [16, 16, 4, 1, 1]);
        assert_eq!(SAMPLE.statement(1).0, SAMPLE.sql);
    }
}
