//! Requests that are answered together.

use std::collections::VecDeque;

use super::{Claim, Event, Question, Request, Tenure, Touched};

/// Claims that one transaction takes over from Rocicorp's server.
const CLAIMS_MAX: usize = 100;

pub(super) enum Asked {
    Claims(Vec<Claim>),
    /// Of one history.
    Touched(Vec<Question>),
    One(Request),
}

impl Asked {
    /// Adds a request, or hands it back.
    pub(super) fn join(&mut self, other: Request) -> Option<Request> {
        match (self, other) {
            (Asked::Claims(claims), Request::Claim(claim)) if claims.len() < CLAIMS_MAX => claims.push(claim),
            (Asked::Touched(questions), Request::Touched(other))
                if questions.first().is_none_or(|q| (q.present, q.lineage) == (other.present, other.lineage)) =>
            {
                questions.push(other);
            }
            (_, other) => return Some(other),
        }
        None
    }

    pub(super) fn is_many_claims(&self) -> bool {
        matches!(self, Asked::Claims(claims) if claims.len() > 1)
    }

    /// Claims, each alone.
    pub(super) fn apart(self) -> VecDeque<Asked> {
        match self {
            Asked::Claims(claims) => claims.into_iter().map(|claim| Asked::Claims(vec![claim])).collect(),
            other => VecDeque::from([other]),
        }
    }

    /// The answers to what can never be answered: that nothing is known.
    pub(super) fn given_up(self) -> Vec<Event> {
        match self {
            Asked::Claims(claims) => {
                claims.into_iter().map(|claim| Event::Refused(Tenure { group: claim.group, epoch: 0 })).collect()
            }
            Asked::Touched(questions) => {
                let present = questions.first().map_or(0, |question| question.present);
                let answers = questions.into_iter().map(|question| (question, None)).collect();
                vec![Event::Touched(Touched { present, answers, latest: None })]
            }
            Asked::One(Request::RowSet { lineage }) => vec![Event::RowSet { lineage, rows: None }],
            Asked::One(Request::Purge { .. }) => vec![Event::Purged { lineages: Vec::new() }],
            Asked::One(Request::Claim(_) | Request::Touched(_)) => unreachable!("gathered"),
        }
    }
}
