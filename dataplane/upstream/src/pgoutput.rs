//! The messages of the `pgoutput` plug-in, protocol version 1, lent out of the receive buffer.

use crate::reader::{Malformed, Reader};

#[derive(Debug, PartialEq)]
pub(crate) enum Message<'a> {
    Begin {
        commit_lsn: u64,
        commit_time_us: i64,
        /// The lower half of the transaction's id.
        xid: u32,
    },
    Commit {
        commit_lsn: u64,
        end_lsn: u64,
    },
    Relation(Relation),
    Insert {
        oid: u32,
        new: Tuple<'a>,
    },
    Update {
        oid: u32,
        old: Option<Old<'a>>,
        new: Tuple<'a>,
    },
    Delete {
        oid: u32,
        old: Old<'a>,
    },
    Truncate {
        oids: Vec<u32>,
    },
    Logical {
        transactional: bool,
        prefix: &'a str,
        content: &'a [u8],
    },
    /// Type, Origin: nothing to do.
    Ignored,
}

/// What an update or delete tells about the old row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Old<'a> {
    /// Only identity columns are filled; the others read as null.
    Key(Tuple<'a>),
    Full(Tuple<'a>),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Relation {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    pub identity: u8,
    pub columns: Vec<RelationColumn>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RelationColumn {
    pub key: bool,
    pub name: String,
    pub type_oid: u32,
}

/// A row: the bytes of `count` columns, checked when the message was parsed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tuple<'a> {
    pub count: usize,
    bytes: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Datum<'a> {
    Null,
    /// TOASTed and not changed, therefore not sent.
    Unchanged,
    Text(&'a [u8]),
}

impl<'a> Tuple<'a> {
    pub(crate) fn data(self) -> Data<'a> {
        Data { reader: Reader::new(self.bytes) }
    }
}

/// The columns of a tuple, in order.
pub(crate) struct Data<'a> {
    reader: Reader<'a>,
}

impl<'a> Data<'a> {
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Datum<'a>, Malformed> {
        match self.reader.u8()? {
            b'n' => Ok(Datum::Null),
            b'u' => Ok(Datum::Unchanged),
            b't' => {
                let length = self.reader.u32()? as usize;
                Ok(Datum::Text(self.reader.bytes(length)?))
            }
            kind => Err(Malformed::new(format!("a column has the unknown kind {kind:#04x}"))),
        }
    }
}

/// Postgres epoch (2000-01-01) in microseconds since the Unix epoch.
pub(crate) const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

pub(crate) fn parse(bytes: &[u8]) -> Result<Message<'_>, Malformed> {
    let mut r = Reader::new(bytes);
    let tag = r.u8()?;
    let message = match tag {
        b'B' => {
            let commit_lsn = r.u64()?;
            let commit_time_us = r.i64()?.saturating_add(POSTGRES_EPOCH_US);
            Message::Begin { commit_lsn, commit_time_us, xid: r.u32()? }
        }
        b'C' => {
            r.u8()?;
            let commit_lsn = r.u64()?;
            let end_lsn = r.u64()?;
            r.i64()?;
            Message::Commit { commit_lsn, end_lsn }
        }
        b'R' => Message::Relation(relation(&mut r)?),
        b'I' => {
            let oid = r.u32()?;
            expect(r.u8()?, b'N')?;
            Message::Insert { oid, new: tuple(&mut r)? }
        }
        b'U' => {
            let oid = r.u32()?;
            match r.u8()? {
                b'N' => Message::Update { oid, old: None, new: tuple(&mut r)? },
                kind => {
                    let old = old(kind, &mut r)?;
                    expect(r.u8()?, b'N')?;
                    Message::Update { oid, old: Some(old), new: tuple(&mut r)? }
                }
            }
        }
        b'D' => {
            let oid = r.u32()?;
            let kind = r.u8()?;
            Message::Delete { oid, old: old(kind, &mut r)? }
        }
        b'T' => {
            let count = r.u32()?;
            r.u8()?;
            let oids = (0..count).map(|_| r.u32()).collect::<Result<_, _>>()?;
            Message::Truncate { oids }
        }
        b'M' => {
            let transactional = r.u8()? & 1 == 1;
            r.u64()?;
            let prefix = r.text()?;
            let length = r.u32()? as usize;
            Message::Logical { transactional, prefix, content: r.bytes(length)? }
        }
        b'Y' | b'O' => return Ok(Message::Ignored),
        _ => return Err(Malformed::new(format!("a replication message has the unknown tag {tag:#04x}"))),
    };
    if r.is_empty() { Ok(message) } else { Err(Malformed::new("a replication message has bytes after its end")) }
}

fn expect(found: u8, wanted: u8) -> Result<(), Malformed> {
    if found == wanted {
        Ok(())
    } else {
        Err(Malformed::new(format!("a row is marked {found:#04x} where {wanted:#04x} must be")))
    }
}

fn old<'a>(kind: u8, r: &mut Reader<'a>) -> Result<Old<'a>, Malformed> {
    match kind {
        b'K' => Ok(Old::Key(tuple(r)?)),
        b'O' => Ok(Old::Full(tuple(r)?)),
        _ => Err(Malformed::new(format!("an old row has the unknown kind {kind:#04x}"))),
    }
}

fn tuple<'a>(r: &mut Reader<'a>) -> Result<Tuple<'a>, Malformed> {
    let count = usize::from(r.u16()?);
    let start = r.mark();
    for _ in 0..count {
        match r.u8()? {
            b'n' | b'u' => {}
            b't' => {
                let length = r.u32()? as usize;
                r.bytes(length)?;
            }
            kind => return Err(Malformed::new(format!("a column has the unknown kind {kind:#04x}"))),
        }
    }
    Ok(Tuple { count, bytes: r.since(start) })
}

fn relation(r: &mut Reader<'_>) -> Result<Relation, Malformed> {
    let oid = r.u32()?;
    let schema = r.text()?;
    // An empty schema stands for pg_catalog.
    let schema = if schema.is_empty() { "pg_catalog" } else { schema }.to_owned();
    let name = r.text()?.to_owned();
    let identity = r.u8()?;
    let count = r.u16()?;
    let mut columns = Vec::with_capacity(usize::from(count).min(1600));
    for _ in 0..count {
        let key = r.u8()? & 1 == 1;
        let name = r.text()?.to_owned();
        let type_oid = r.u32()?;
        r.i32()?;
        columns.push(RelationColumn { key, name, type_oid });
    }
    Ok(Relation { oid, schema, name, identity, columns })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<Vec<u8>> {
        let mut begin = vec![b'B'];
        begin.extend(7_u64.to_be_bytes());
        begin.extend(1_i64.to_be_bytes());
        begin.extend(9_u32.to_be_bytes());
        let mut insert = vec![b'I', 0, 0, 0, 5, b'N', 0, 3, b'n', b'u', b't', 0, 0, 0, 2];
        insert.extend(b"ab");
        let mut update = vec![b'U', 0, 0, 0, 5, b'K', 0, 1, b't', 0, 0, 0, 1, b'1', b'N', 0, 1, b't', 0, 0, 0, 1];
        update.push(b'2');
        let mut message = vec![b'M', 1];
        message.extend(3_u64.to_be_bytes());
        message.extend(b"zero/0/ddl\0");
        message.extend(2_u32.to_be_bytes());
        message.extend(b"{}");
        let mut relation = vec![b'R', 0, 0, 0, 5];
        relation.extend(b"public\0t\0d");
        relation.extend([0, 1, 1]);
        relation.extend(b"id\0");
        relation.extend([0, 0, 0, 23, 255, 255, 255, 255]);
        let truncate = vec![b'T', 0, 0, 0, 1, 0, 0, 0, 0, 5];
        vec![begin, insert, update, message, relation, truncate]
    }

    #[test]
    fn messages_are_read() {
        let samples = sample();
        assert_eq!(
            parse(&samples[0]).unwrap(),
            Message::Begin { commit_lsn: 7, commit_time_us: POSTGRES_EPOCH_US + 1, xid: 9 }
        );
        let Message::Insert { oid: 5, new } = parse(&samples[1]).unwrap() else { panic!() };
        let mut data = new.data();
        assert_eq!(new.count, 3);
        assert_eq!(data.next(), Ok(Datum::Null));
        assert_eq!(data.next(), Ok(Datum::Unchanged));
        assert_eq!(data.next(), Ok(Datum::Text(b"ab")));
        assert!(data.next().is_err());
        let Message::Update { old: Some(Old::Key(_)), .. } = parse(&samples[2]).unwrap() else { panic!() };
        let Message::Logical { transactional: true, prefix: "zero/0/ddl", content: b"{}" } =
            parse(&samples[3]).unwrap()
        else {
            panic!()
        };
        let Message::Relation(relation) = parse(&samples[4]).unwrap() else { panic!() };
        assert_eq!((relation.name.as_str(), relation.columns[0].type_oid), ("t", 23));
        assert_eq!(parse(&samples[5]).unwrap(), Message::Truncate { oids: vec![5] });
    }

    #[test]
    fn every_truncation_is_an_error() {
        for sample in sample() {
            for end in 0..sample.len() {
                assert!(parse(&sample[..end]).is_err());
            }
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), tag in 0..6_usize) {
            let _ = parse(&bytes);
            let mut spoiled = sample()[tag].clone();
            for (i, b) in bytes.iter().enumerate() {
                let at = usize::from(*b) % spoiled.len();
                spoiled[at] ^= u8::try_from(i % 255).unwrap();
                let _ = parse(&spoiled);
            }
        }
    }
}
