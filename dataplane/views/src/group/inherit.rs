//! The record of a client group that comes from Rocicorp's server.
//!
//! Every query that its clients got is held by them, though nobody knows here which rows it had: all of what the clients may hold
//! is in one history. So each such query is delivered as one whose rows are others now, and what no query has any more is
//! deleted. Until the last of them is there, nobody is told anything.
//!
//! Pure; what cannot be understood is refused as a whole, as a part of it may be what a client stands on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rows::Cookie;

use super::record::{
    CLIENTS_MAX, Definition, Desire, Holding, Inherited, QUERIES_MAX, Query, REMOVED_MAX, Record, Removed,
    RemovedDesire, TTL_MAX_MS,
};
use super::room;
use crate::outgoing::now_ms;
use crate::store::{Remembered, RememberedDesire, RememberedQuery};

/// The record as text, or why there is none.
pub fn record(remembered: Remembered) -> Result<String, String> {
    let record = record_of(remembered, now_ms())?;
    serde_json::to_string(&record).map_err(|error| error.to_string())
}

fn record_of(remembered: Remembered, now_ms: u64) -> Result<Record, String> {
    let Remembered { cookie, version, lineage, ttl_clock_ms, client_schema, profile_id, clients, queries, desires } =
        remembered;
    if clients.len() > CLIENTS_MAX {
        return Err("it has too many clients".into());
    }
    let since = if version > cookie.version { Cookie::new(version, 0) } else { cookie.bump_config() };
    let inherited = Inherited { lineage, until: cookie, since, at_ms: now_ms };
    let mut record = Record {
        cookie,
        client_schema: Some(client_schema),
        profile_id,
        ttl_clock_ms: whole_ms(ttl_clock_ms)?,
        clients: clients.into_iter().collect(),
        inherited: Some(inherited),
        ..Record::default()
    };
    let mut by_query: BTreeMap<String, BTreeMap<String, Desire>> = BTreeMap::new();
    for desire in desires {
        if desire.is_deleted {
            let RememberedDesire { client, hash, since, .. } = &desire;
            record.removed_desires.push_back(RemovedDesire {
                client: client.clone(),
                hash: hash.clone(),
                removed_at: *since,
            });
        }
        if let Some(state) = state_of(&desire, &record.clients, record.ttl_clock_ms)? {
            by_query.entry(desire.hash).or_default().insert(desire.client, state);
        }
    }
    record.removed_desires.make_contiguous().sort_by_key(|removed| removed.removed_at);
    record.trim_removed_desires();
    let mut removed = Vec::new();
    for query in queries {
        let desires = by_query.remove(&query.hash).unwrap_or_default();
        let is_wanted = desires.values().any(|desire| desire.inactivated_at_ms.is_none());
        // What got it: all of the group's rows are in the one history.
        let holding = Holding::new("", lineage, Cookie::EMPTY);
        if query.is_deleted && !is_wanted {
            removed.push(Removed {
                hash: query.hash,
                holding,
                at_ms: now_ms,
                removed_at: query.since.unwrap_or(cookie),
            });
            continue;
        }
        let holding = (query.since.is_some() && !query.is_deleted).then_some(holding);
        let definition = definition(&query)?;
        record.queries.insert(query.hash, Query { definition, holding, failed: None, desires });
    }
    if record.queries.len() > QUERIES_MAX {
        return Err("it has too many queries".into());
    }
    (record.removed, record.floor) = newest(removed);
    if room::json_bytes(&record) > room::RECORD_BYTES_MAX {
        return Err("what its clients desire is too large".into());
    }
    Ok(record)
}

/// The newest of the removed queries in their order, and below which cookie something is missing.
fn newest(mut removed: Vec<Removed>) -> (VecDeque<Removed>, Cookie) {
    removed.sort_by_key(|removed| removed.removed_at);
    // Others will be removed while the group is here.
    let cut = removed.len().saturating_sub(REMOVED_MAX / 2);
    let floor = removed.drain(..cut).next_back().map_or(Cookie::EMPTY, |last| last.removed_at);
    (removed.into(), floor)
}

/// How a client stands to a query; `None` if it has nothing to do with it any more.
fn state_of(desire: &RememberedDesire, clients: &BTreeSet<String>, clock_ms: u64) -> Result<Option<Desire>, String> {
    let inactivated_at_ms = match desire.inactivated_at_ms {
        Some(at_ms) => Some(whole_ms(at_ms)?),
        None if desire.is_deleted => return Ok(None),
        None if clients.contains(&desire.client) => None,
        // It went without saying so.
        None => Some(clock_ms),
    };
    let ttl_ms = desire.ttl_ms.map_or(Ok(TTL_MAX_MS), whole_ms)?.min(TTL_MAX_MS);
    Ok(Some(Desire { ttl_ms, inactivated_at_ms }))
}

fn definition(query: &RememberedQuery) -> Result<Definition, String> {
    let refuse = |error: serde_json::Error| format!("a query's definition: {error}");
    let definition = match (&query.ast, &query.name, &query.args) {
        (Some(ast), ..) => Definition::Ast(serde_json::from_str(ast).map_err(refuse)?),
        (None, Some(name), Some(args)) => {
            let args: Vec<serde_json::Value> = serde_json::from_str(args).map_err(refuse)?;
            Definition::Named { name: name.clone(), args: args.into() }
        }
        _ => return Err("a query has no definition that is short enough to be read".into()),
    };
    room::too_large(&definition).map_or(Ok(definition), Err)
}

/// A number of milliseconds as JavaScript counts them.
fn whole_ms(ms: f64) -> Result<u64, String> {
    // Within these bounds the conversion loses nothing but the fraction.
    if (0.0..=9e15).contains(&ms) { Ok(ms as u64) } else { Err(format!("{ms} is no time in milliseconds")) }
}

#[cfg(test)]
mod tests {
    use protocol::schema::ClientSchema;
    use rows::Version;

    use super::*;

    const LINEAGE: i64 = 77;

    fn at(version: u64, config: u64) -> Cookie {
        Cookie::new(Version::new(version), config)
    }

    fn named(hash: &str, since: Option<Cookie>, is_deleted: bool) -> RememberedQuery {
        let (name, args) = (Some("q".into()), Some(r#"[{"a":1}]"#.into()));
        RememberedQuery { hash: hash.into(), ast: None, name, args, since, is_deleted }
    }

    fn desired(client: &str, hash: &str, ttl_ms: Option<f64>, inactivated_at_ms: Option<f64>) -> RememberedDesire {
        let is_deleted = inactivated_at_ms.is_some();
        RememberedDesire {
            client: client.into(),
            hash: hash.into(),
            since: at(5, 1),
            is_deleted,
            ttl_ms,
            inactivated_at_ms,
        }
    }

    fn remembered(queries: Vec<RememberedQuery>, desires: Vec<RememberedDesire>) -> Remembered {
        Remembered {
            cookie: at(10, 2),
            version: Version::new(12),
            lineage: LINEAGE,
            ttl_clock_ms: 1_000.7,
            client_schema: ClientSchema::default(),
            profile_id: None,
            clients: vec!["a".into(), "b".into()],
            queries,
            desires,
        }
    }

    #[test]
    fn what_clients_desire_and_hold_goes_on() {
        let queries = vec![
            named("got", Some(at(3, 0)), false),
            named("new", None, false),
            named("gone", Some(at(8, 1)), true),
            named("failed", Some(at(9, 0)), true),
            RememberedQuery {
                ast: Some(r#"{"table":"issue","orderBy":[["id","asc"]]}"#.into()),
                ..named("own", Some(at(2, 0)), false)
            },
        ];
        let mut cleared = desired("a", "own", Some(60_000.0), None);
        cleared.is_deleted = true;
        let desires = vec![
            desired("a", "got", Some(60_000.0), None),
            desired("b", "got", None, Some(900.0)),
            desired("left", "new", Some(1e9), None),
            desired("a", "failed", Some(1.0), None),
            desired("a", "gone", Some(1.0), Some(5.0)),
            cleared,
            desired("b", "own", Some(0.0), None),
        ];
        let record = record_of(remembered(queries, desires), 1).unwrap();
        assert_eq!((record.cookie, record.ttl_clock_ms, record.floor), (at(10, 2), 1_000, Cookie::EMPTY));
        assert_eq!(record.lineages(), [LINEAGE]);
        let since = |version| {
            let behind = Remembered { version: Version::new(version), ..remembered(vec![], vec![]) };
            record_of(behind, 1).unwrap().inherited.unwrap().since
        };
        assert_eq!((since(12), since(10)), (at(12, 0), at(10, 3)));
        let desire = |ttl_ms, inactivated_at_ms| Desire { ttl_ms, inactivated_at_ms };
        let states = record
            .queries
            .iter()
            .map(|(hash, q)| {
                let desires = q.desires.iter().map(|(client, desire)| (client.as_str(), desire.clone()));
                (hash.as_str(), q.holding.is_some(), desires.collect::<Vec<_>>())
            })
            .collect::<Vec<_>>();
        assert_eq!(
            states,
            [
                ("failed", false, vec![("a", desire(1, None))]),
                ("got", true, vec![("a", desire(60_000, None)), ("b", desire(TTL_MAX_MS, Some(900)))]),
                // A client that is no more wants nothing from now on.
                ("new", false, vec![("left", desire(TTL_MAX_MS, Some(1_000)))]),
                ("own", true, vec![("b", desire(0, None))]),
            ]
        );
        assert!(matches!(&record.queries["own"].definition, Definition::Ast(ast) if ast.table == "issue"));
        let removed: Vec<(&str, Cookie)> = record.removed.iter().map(|r| (r.hash.as_str(), r.removed_at)).collect();
        assert_eq!(removed, [("gone", at(8, 1))]);
        let mut gone: Vec<&str> = record.removed_desires.iter().map(|r| r.hash.as_str()).collect();
        gone.sort_unstable();
        assert_eq!(gone, ["gone", "got", "own"]);
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap().inherited, record.inherited);
    }

    #[test]
    fn what_is_damaged_or_too_large_is_refused() {
        let broken = |change: fn(&mut RememberedQuery)| {
            let mut query = named("q", Some(at(1, 0)), false);
            change(&mut query);
            vec![query]
        };
        let cases = [
            remembered(broken(|q| q.args = None), vec![]),
            remembered(broken(|q| q.args = Some("{}".into())), vec![]),
            remembered(broken(|q| q.args = Some("[".into())), vec![]),
            remembered(broken(|q| q.args = Some(format!("[{:?}]", "x".repeat(2 << 20)))), vec![]),
            remembered(broken(|q| q.ast = Some(r#"{"limit":-1}"#.into())), vec![]),
            remembered(vec![], vec![desired("a", "q", Some(f64::NAN), None)]),
            remembered(vec![], vec![desired("a", "q", None, Some(-1.0))]),
            Remembered { ttl_clock_ms: f64::INFINITY, ..remembered(vec![], vec![]) },
            Remembered { clients: vec!["c".into(); CLIENTS_MAX + 1], ..remembered(vec![], vec![]) },
            remembered((0..=QUERIES_MAX).map(|n| named(&n.to_string(), None, false)).collect(), vec![]),
        ];
        for (n, case) in cases.into_iter().enumerate() {
            assert!(record_of(case, 1).is_err(), "case {n}");
        }
    }

    #[test]
    fn who_may_have_missed_a_query_that_is_forgotten_starts_over() {
        let queries = (0..200).rev().map(|n| named(&format!("q{n}"), Some(at(n, 0)), true)).collect();
        let record = record_of(remembered(queries, vec![]), 1).unwrap();
        assert_eq!((record.removed.len(), record.floor), (REMOVED_MAX / 2, at(71, 0)));
        assert_eq!(record.removed.back().unwrap().hash, "q199");
    }
}
