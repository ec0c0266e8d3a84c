//! Checked reading of big-endian messages.

use std::fmt;

/// What was wrong with bytes that Postgres sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Malformed {
    pub(crate) fn new(what: impl Into<String>) -> Malformed {
        Malformed(what.into())
    }

    /// "`self` in `place`".
    pub(crate) fn within(self, place: impl fmt::Display) -> Malformed {
        Malformed(format!("{} in {place}", self.0))
    }
}

impl From<Malformed> for crate::Error {
    fn from(error: Malformed) -> crate::Error {
        crate::Error::Garbled { message: error.0 }
    }
}

pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Everything that was not read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// What is left, to be handed to [`Reader::since`].
    pub(crate) fn mark(&self) -> &'a [u8] {
        self.rest
    }

    /// The bytes read since `mark`.
    pub(crate) fn since(&self, mark: &'a [u8]) -> &'a [u8] {
        &mark[..mark.len() - self.rest.len()]
    }

    #[inline]
    pub(crate) fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let Some((head, tail)) = self.rest.split_at_checked(n) else {
            return Err(Malformed::new(format!("{n} bytes are announced and {} are left", self.rest.len())));
        };
        self.rest = tail;
        Ok(head)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let Some((head, tail)) = self.rest.split_first_chunk::<N>() else {
            return Err(Malformed::new("it ends too early"));
        };
        self.rest = tail;
        Ok(*head)
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    #[inline]
    pub(crate) fn i16(&mut self) -> Result<i16, Malformed> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    #[inline]
    pub(crate) fn i32(&mut self) -> Result<i32, Malformed> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    #[inline]
    pub(crate) fn i64(&mut self) -> Result<i64, Malformed> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// A zero-terminated string.
    pub(crate) fn text(&mut self) -> Result<&'a str, Malformed> {
        let end = self.rest.iter().position(|&b| b == 0).ok_or_else(|| Malformed::new("a name has no end"))?;
        let text = std::str::from_utf8(&self.rest[..end]).map_err(|_| Malformed::new("a name is not UTF-8"))?;
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }
}
