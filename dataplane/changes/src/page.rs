//! Pages: transactions encoded once, in the pieces in which they are stored and sent.
//!
//! A page is a run of transactions. One that is larger than [`PAGE_BYTES`] is cut into parts; a [`Page`] is one part.

use bytes::Bytes;
use rows::{Transaction, Version};

use crate::codec::{CodecError, decode, encode};
use crate::error::{Error, Result};

/// A page is closed when it has this many bytes, and no part is longer.
pub const PAGE_BYTES: usize = 1 << 20;

/// A page, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The transactions of the page, the same for all of its parts.
    pub first: Version,
    pub last: Version,
    /// Parts count from 0.
    pub part: u32,
    /// The last part; the page is the bodies of all parts joined.
    pub is_end: bool,
    pub body: Bytes,
}

/// Encoded transactions in ascending order: to be stored with one commit, and sent to those who follow the log.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pages: Vec<Page>,
}

impl Batch {
    /// Fails with [`Error::OutOfOrder`] if the versions do not ascend.
    pub fn encode(transactions: &[Transaction]) -> Result<Batch> {
        for pair in transactions.windows(2) {
            if pair[1].version <= pair[0].version {
                return Err(Error::OutOfOrder { last: pair[0].version, next: pair[1].version });
            }
        }
        let mut pages = Vec::new();
        let mut body = Vec::new();
        let mut first = None;
        for (i, transaction) in transactions.iter().enumerate() {
            let page_first = *first.get_or_insert(transaction.version);
            encode(transaction, &mut body);
            if body.len() < PAGE_BYTES && i + 1 < transactions.len() {
                continue;
            }
            cut(page_first, transaction.version, Bytes::from(std::mem::take(&mut body)), &mut pages);
            first = None;
        }
        Ok(Batch { pages })
    }

    #[must_use]
    pub fn pages(&self) -> &[Page] {
        &self.pages
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// The first and the last version.
    #[must_use]
    pub fn range(&self) -> Option<(Version, Version)> {
        Some((self.pages.first()?.first, self.pages.last()?.last))
    }

    #[must_use]
    pub fn byte_count(&self) -> usize {
        self.pages.iter().map(|page| page.body.len()).sum()
    }

    /// The transactions after `after`, encoded anew where a page holds older ones too.
    pub(crate) fn after(&self, after: Version) -> Result<Batch> {
        let later: Vec<Page> = self.pages.iter().filter(|page| page.last > after).cloned().collect();
        match later.first() {
            Some(page) if page.first <= after => {
                let mut transactions = decode_all(&later)?;
                transactions.retain(|transaction| transaction.version > after);
                Batch::encode(&transactions)
            }
            _ => Ok(Batch { pages: later }),
        }
    }
}

fn cut(first: Version, last: Version, mut body: Bytes, pages: &mut Vec<Page>) {
    let mut part = 0;
    while body.len() > PAGE_BYTES {
        pages.push(Page { first, last, part, is_end: false, body: body.split_to(PAGE_BYTES) });
        part += 1;
    }
    pages.push(Page { first, last, part, is_end: true, body });
}

/// Decodes whole pages. Parts of one page must be adjacent and complete.
pub fn decode_all(pages: &[Page]) -> std::result::Result<Vec<Transaction>, CodecError> {
    let mut transactions = Vec::new();
    let mut whole: Vec<u8> = Vec::new();
    for page in pages {
        if page.is_end && whole.is_empty() {
            decode_into(&page.body, &mut transactions)?;
            continue;
        }
        whole.extend_from_slice(&page.body);
        if page.is_end {
            decode_into(&whole, &mut transactions)?;
            whole.clear();
        }
    }
    if whole.is_empty() { Ok(transactions) } else { Err(CodecError::SHORT) }
}

fn decode_into(mut bytes: &[u8], transactions: &mut Vec<Transaction>) -> std::result::Result<(), CodecError> {
    while !bytes.is_empty() {
        transactions.push(decode(&mut bytes)?);
    }
    Ok(())
}
