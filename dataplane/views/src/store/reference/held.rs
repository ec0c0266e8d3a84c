//! The rows that the clients of several groups may hold, as they come from the reference's tables.

use rows::Version;

use super::text::Keys;
use super::{Claim, Inherit, Refusal, Remembered};
use crate::convert::KeyChoice;
use crate::row_id::{Encoder, Presence};

/// Rows of one group as they are stored here, or of all that are taken at once; about a million.
const BYTES_MAX: usize = 32 << 20;

/// One group's rows.
struct Held<'a> {
    group: &'a str,
    keys: Keys<'a>,
    rows: Encoder,
    /// Whether any came.
    has_rows: bool,
    /// Why they cannot be used.
    fault: Option<String>,
}

/// The rows of the groups of which all else is known, in the order of their names.
pub(super) struct Bases<'a> {
    /// For each group that was asked for.
    held: Vec<Option<Held<'a>>>,
    /// The one whose rows come.
    present: Option<usize>,
    /// Bytes of those that are complete.
    complete: usize,
    /// Those whose rows have not come to their end, because there are too many of others.
    after_others: bool,
}

impl<'a> Bases<'a> {
    pub(super) fn new(claims: &[&'a Claim], known: &[Result<Remembered, Refusal>], inherit: &'a Inherit) -> Bases<'a> {
        let held = |(claim, known): (&&'a Claim, &Result<Remembered, Refusal>)| {
            let choice = KeyChoice::of(&known.as_ref().ok()?.client_schema);
            let keys = Keys::new(&claim.schema, choice, &inherit.own_tables);
            Some(Held { group: &claim.group, keys, rows: Encoder::default(), has_rows: false, fault: None })
        };
        let held = claims.iter().zip(known).map(held).collect();
        Bases { held, present: None, complete: 0, after_others: false }
    }

    /// The groups whose rows are needed.
    pub(super) fn wanted(&self) -> Vec<&'a str> {
        self.held.iter().flatten().map(|held| held.group).collect()
    }

    /// One more row of a group; those of one group come together. False: no more are needed.
    pub(super) fn add(&mut self, group: &str, table: &str, key: &str) -> bool {
        let is_at = |at: usize| self.held[at].as_ref().is_some_and(|held| held.group == group);
        if !self.present.is_some_and(is_at) {
            if let Some(before) = self.present.and_then(|at| self.held[at].as_ref()) {
                self.complete += before.rows.size();
            }
            self.present = (0..self.held.len()).find(|at| is_at(*at));
        }
        let is_first = self.complete == 0;
        let Some(held) = self.present.and_then(|at| self.held[at].as_mut()) else { return true };
        held.has_rows = true;
        if held.fault.is_some() {
            return true;
        }
        match held.keys.row_id(table, key) {
            Ok(Some(id)) => held.rows.push(&id, Presence::Present(Version::ZERO)),
            Ok(None) => {}
            Err(fault) => held.fault = Some(fault),
        }
        if held.rows.size() > BYTES_MAX {
            held.fault = Some("it holds too many rows".to_owned());
            held.rows = Encoder::default();
        }
        let is_full = self.complete + held.rows.size() > BYTES_MAX && !is_first;
        self.after_others |= is_full;
        !is_full
    }

    /// In the order of the claims; for those that were not wanted, as if they had none.
    pub(super) fn finish(self) -> Vec<Result<Vec<u8>, Refusal>> {
        let Bases { held, present, after_others, .. } = self;
        let last = present.and_then(|at| held[at].as_ref()).map_or("", |held| held.group).to_owned();
        let finish = |held: Option<Held<'a>>| match held {
            // Which come later only the database knows: it orders by its own rules.
            Some(held) if after_others && (held.group == last || !held.has_rows) => Err(Refusal::AfterOthers),
            Some(Held { fault: Some(fault), .. }) => Err(Refusal::Unusable(fault)),
            Some(held) => Ok(held.rows.finish()),
            None => Ok(Vec::new()),
        };
        held.into_iter().map(finish).collect()
    }
}
