//! Rows that a group writes many of, as the server takes them by COPY.
//!
//! A row that is inserted by itself is a record of its own in the server's log, with half a hundred bytes around it. Rows that come by
//! COPY are written into the log a page at a time. It costs a round trip for each table, so that few rows are inserted as ever;
//! and a proxy that gives each transaction another connection is not troubled with it.

use std::sync::Arc;

/// From so many rows on they are copied.
pub(crate) const MANY: usize = 50;

/// Rows of one table, in COPY's binary format.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    pub(crate) sql: &'static str,
    pub(crate) data: Arc<[u8]>,
}

/// Rows under way.
pub(crate) struct Encoder(Vec<u8>);

impl Encoder {
    pub(crate) fn new() -> Self {
        let mut data = Vec::with_capacity(64 * 1024);
        data.extend_from_slice(b"PGCOPY\n\xff\r\n\0");
        // No flags, and nothing more in front.
        data.extend_from_slice(&[0; 8]);
        Self(data)
    }

    /// Begins a row of so many columns.
    pub(crate) fn row(&mut self, columns: i16) -> &mut Self {
        self.0.extend_from_slice(&columns.to_be_bytes());
        self
    }

    pub(crate) fn int8(&mut self, value: i64) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(crate) fn int8_or_null(&mut self, value: Option<i64>) -> &mut Self {
        match value {
            Some(value) => self.int8(value),
            None => self.null(),
        }
    }

    pub(crate) fn int4(&mut self, value: i32) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(crate) fn int4_or_null(&mut self, value: Option<i32>) -> &mut Self {
        match value {
            Some(value) => self.int4(value),
            None => self.null(),
        }
    }

    pub(crate) fn text(&mut self, value: &str) -> &mut Self {
        self.bytes(value.as_bytes())
    }

    pub(crate) fn text_or_null(&mut self, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.text(value),
            None => self.null(),
        }
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        // A field of two gigabytes is refused by the server, whatever is said of its length.
        let length = i32::try_from(value.len()).unwrap_or(i32::MAX);
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(value);
        self
    }

    pub(crate) fn bytes_or_null(&mut self, value: Option<&[u8]>) -> &mut Self {
        match value {
            Some(value) => self.bytes(value),
            None => self.null(),
        }
    }

    fn null(&mut self) -> &mut Self {
        self.0.extend_from_slice(&(-1_i32).to_be_bytes());
        self
    }

    /// All rows are in.
    pub(crate) fn end(mut self, sql: &'static str) -> Rows {
        self.0.extend_from_slice(&(-1_i16).to_be_bytes());
        Rows { sql, data: self.0.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_its_number_of_columns_and_each_with_its_length() {
        let mut rows = Encoder::new();
        rows.row(3).int4(7).text("ab").int8_or_null(None);
        let rows = rows.end("copy");
        let expected: &[u8] =
            b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x03\0\0\0\x04\0\0\0\x07\0\0\0\x02ab\xff\xff\xff\xff\xff\xff";
        assert_eq!(&*rows.data, expected);
    }
}
