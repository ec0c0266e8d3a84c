//! Speed of the initial copy, of applying, of scanning, and of the scans that hydrate typical queries, on an issue tracker of
//! 100,000 issues, 300,000 comments and 200,000 labels of issues.
//!
//! `cargo bench -p replica`; `-- --check` runs everything on a hundredth of the data, to see that it works.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ColumnType::{Bool, Float, Int, Json, Str};
use ivm::Graph;
use ivm::generators::Rng;
use ivm::query::{Condition, Literal, Op, Query, Related};
use ivm::source::{ScanArgs, ScanPlan, Source};
use replica::{Description, Identity, Loader, Opened, Reader, Replica};
use rows::schema::{ColumnSpec, IndexSpec};
use rows::{Cell, CellRef, Change, ColumnType, CopyBlock, Direction, SortKey, TableSpec, Transaction, Value, Version};

const USERS: usize = 1000;
const PROJECTS: usize = 10;
const LABELS: usize = 50;

fn spec(
    oid: u32,
    name: &str,
    columns: &[(&str, ColumnType, bool)],
    key: &[&str],
    indexes: &[&[&str]],
) -> Arc<TableSpec> {
    let columns = columns
        .iter()
        .enumerate()
        .map(|(i, &(name, ty, not_null))| ColumnSpec {
            attnum: i as i16 + 1,
            name: name.into(),
            type_oid: 0,
            type_name: "any".into(),
            ty,
            not_null,
        })
        .collect();
    let names = |list: &[&str]| list.iter().map(|c| (*c).to_owned()).collect::<Vec<String>>();
    let index = |unique, list: &[&str]| IndexSpec {
        name: list.join("_"),
        unique,
        columns: list.iter().map(|c| ((*c).to_owned(), false)).collect(),
    };
    let mut all = vec![index(true, key)];
    all.extend(indexes.iter().map(|i| index(false, i)));
    Arc::new(TableSpec {
        oid,
        schema: "public".into(),
        name: name.into(),
        columns,
        primary_key: names(key),
        identity: names(key),
        indexes: all,
    })
}

fn specs() -> Vec<Arc<TableSpec>> {
    vec![
        spec(1, "user", &[("id", Str, true), ("login", Str, true), ("name", Str, false)], &["id"], &[&["login"]]),
        spec(
            2,
            "issue",
            &[
                ("id", Str, true),
                ("shortID", Int, true),
                ("title", Str, true),
                ("open", Bool, true),
                ("modified", Float, true),
                ("created", Float, true),
                ("creatorID", Str, true),
                ("assigneeID", Str, false),
                ("projectID", Str, true),
                ("description", Str, true),
                ("visibility", Str, true),
                ("pinned", Bool, true),
                ("seq", Int, true),
                ("touched", Float, true),
            ],
            &["id"],
            &[
                &["shortID"],
                &["modified"],
                &["open", "modified"],
                &["projectID", "modified"],
                &["creatorID"],
                &["assigneeID"],
            ],
        ),
        spec(
            3,
            "comment",
            &[
                ("id", Str, true),
                ("issueID", Str, true),
                ("created", Float, true),
                ("body", Str, true),
                ("creatorID", Str, true),
            ],
            &["id"],
            &[&["issueID", "created"], &["creatorID"]],
        ),
        spec(4, "label", &[("id", Str, true), ("name", Str, true), ("projectID", Str, false)], &["id"], &[&["name"]]),
        spec(
            5,
            "issueLabel",
            &[("issueID", Str, true), ("labelID", Str, true)],
            &["issueID", "labelID"],
            &[&["labelID"]],
        ),
        spec(
            6,
            "wide",
            &[
                ("id", Int, true),
                ("tenant", Str, true),
                ("name", Str, true),
                ("email", Str, false),
                ("active", Bool, true),
                ("score", Float, false),
                ("amount", Float, false),
                ("quantity", Int, false),
                ("created", Float, true),
                ("updated", Float, true),
                ("birthday", Float, false),
                ("kind", Str, false),
                ("tags", Json, false),
                ("note1", Str, false),
                ("note2", Str, false),
                ("ref", Str, false),
            ],
            &["id"],
            &[&["tenant", "created"]],
        ),
    ]
}

struct Data {
    rng: Rng,
    issues: usize,
}

const TEXT: &str = "alpha beta gamma delta epsilon zeta theta iota kappa lambda sigma omega cache query sync client server socket render \
    layout mobile button dialog crash memory leak index planner replica cursor filter label comment project user search offline network";

impl Data {
    fn text(&mut self, length: usize) -> &'static str {
        let from = self.rng.below(TEXT.len().saturating_sub(length).max(1));
        &TEXT[from..(from + length).min(TEXT.len())]
    }

    fn block(&mut self, table: usize, range: std::ops::Range<usize>) -> CopyBlock {
        let columns = [3, 14, 5, 3, 2, 16][table];
        let mut b = CopyBlock::new(columns);
        for n in range {
            self.row(table, n, &mut b);
        }
        b
    }

    fn row(&mut self, table: usize, n: usize, b: &mut CopyBlock) {
        let text = |b: &mut CopyBlock, s: &str| b.push(CellRef::Text(s));
        match table {
            0 => {
                text(b, &user(n));
                text(b, &format!("login{n}"));
                text(b, self.text(14));
            }
            1 => {
                let created = 1.7e12 + n as f64 * 60_000.0;
                text(b, &issue(n));
                b.push(CellRef::Int(n as i64 + 1));
                let length = 40 + self.rng.below(30);
                text(b, self.text(length));
                b.push(CellRef::Bool(self.rng.below(10) < 3));
                b.push(CellRef::Float(created + self.rng.below(43_200) as f64 * 60_000.0 + n as f64));
                b.push(CellRef::Float(created));
                text(b, &user(self.rng.below(USERS)));
                if self.rng.one_in(5) {
                    b.push(CellRef::Null);
                } else {
                    text(b, &user(self.rng.below(USERS)));
                }
                text(b, &format!("p{:03}", self.rng.below(PROJECTS)));
                text(b, &format!("{}{}", self.text(150), self.text(140)));
                text(b, if self.rng.one_in(10) { "internal" } else { "public" });
                b.push(CellRef::Bool(self.rng.one_in(100)));
                b.push(CellRef::Int(0));
                b.push(CellRef::Float(0.0));
            }
            2 => {
                text(b, &format!("c{n:08}"));
                text(b, &issue(self.rng.below(self.issues)));
                b.push(CellRef::Float(1.7e12 + self.rng.below(1 << 30) as f64));
                let length = 80 + self.rng.below(120);
                text(b, self.text(length));
                text(b, &user(self.rng.below(USERS)));
            }
            3 => {
                text(b, &format!("l{n:03}"));
                text(b, &format!("label-{n:03}"));
                text(b, &format!("p{:03}", n % PROJECTS));
            }
            4 => {
                // Skewed, so that low labels are common and high ones rare; two per issue.
                let u = self.rng.below(10_000) as f64 / 10_000.0;
                let half = (u * u * LABELS as f64) as usize / 2;
                text(b, &issue(n / 2));
                text(b, &format!("l{:03}", half * 2 + n % 2));
            }
            _ => {
                b.push(CellRef::Int(n as i64));
                text(b, &format!("tenant-{}", n % 500));
                text(b, self.text(20));
                text(b, "user@example.com");
                b.push(CellRef::Bool(n.is_multiple_of(2)));
                b.push(CellRef::Float(n as f64 / 3.0));
                b.push(CellRef::Float(n as f64 * 1.25));
                b.push(CellRef::Int(self.rng.below(1 << 20) as i64));
                b.push(CellRef::Float(1.7e12 + n as f64 * 1000.0));
                b.push(CellRef::Float(1.71e12 + n as f64 * 1000.0));
                b.push(CellRef::Float(1.7e12));
                text(b, "public");
                text(b, "{\"a\": 7, \"tags\": [\"alpha\", \"beta\"]}");
                text(b, self.text(60));
                text(b, self.text(90));
                text(b, "00000000-0000-4000-8000-000000000000");
            }
        }
    }
}

fn user(n: usize) -> String {
    format!("u{n:06}")
}

fn issue(n: usize) -> String {
    format!("i{n:08}")
}

/// Wall and processor time: on a machine that does other things too, the second is what to compare.
#[derive(Clone, Copy, Default)]
struct Spent {
    wall: Duration,
    cpu: Duration,
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, other: Spent) {
        self.wall += other.wall;
        self.cpu += other.cpu;
    }
}

struct Clock(Instant, Duration);

impl Clock {
    fn start() -> Clock {
        Clock(Instant::now(), cpu())
    }

    fn spent(&self) -> Spent {
        Spent { wall: self.0.elapsed(), cpu: cpu().saturating_sub(self.1) }
    }
}

/// Processor time of the process, which has one thread.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0))
}

fn report(what: &str, spent: Spent, count: usize, unit: &str) {
    let (wall, cpu) = (spent.wall.as_secs_f64(), spent.cpu.as_secs_f64());
    println!(
        "{what:<44} {:>9.2} ms {:>10.0} {unit}/s   cpu {:>9.2} ms {:>10.0} {unit}/s",
        wall * 1e3,
        count as f64 / wall,
        cpu * 1e3,
        count as f64 / cpu.max(1e-9)
    );
}

fn main() {
    let scale = if std::env::args().any(|a| a == "--check") { 100 } else { 1 };
    let directory =
        tempfile::tempdir_in(std::env::var_os("BENCH_DIR").unwrap_or_else(|| "/tmp".into())).expect("a directory");
    let path = directory.path().join("replica.db");
    copy(&path, scale);
    apply(&path, scale);
    let identity = Identity { app: "zero".into(), shard: 0 };
    let Ok(Opened::Usable(replica)) = Replica::open(&path, &identity) else { return println!("not usable") };
    let mut reader = replica.reader().expect("a reader");
    reader.begin().expect("a version");
    scan(&mut reader);
    queries(&mut reader);
    println!("{:<44} {:>9} MiB", "largest resident memory", peak_memory() >> 10);
}

fn peak_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn copy(path: &Path, scale: usize) {
    let issues = 100_000 / scale;
    let counts = [USERS, issues, 3 * issues, LABELS, 2 * issues, 5 * issues];
    let mut data = Data { rng: Rng::new(7), issues };
    let description = Description {
        identity: Identity { app: "zero".into(), shard: 0 },
        replica_id: "bench".into(),
        slot: "bench".into(),
        initial_version: Version::ZERO,
    };
    let mut loader = Loader::create(path, description, specs()).expect("a new copy");
    let mut all = Spent::default();
    for (table, &count) in counts.iter().enumerate() {
        let mut busy = Spent::default();
        for start in (0..count).step_by(1000) {
            let block = data.block(table, start..(start + 1000).min(count));
            let begin = Clock::start();
            loader.block(table, &block).expect("room");
            busy += begin.spent();
        }
        all += busy;
        report(
            &format!("copy {}", ["user", "issue", "comment", "label", "issueLabel", "wide (16 columns)"][table]),
            busy,
            count,
            "rows",
        );
    }
    let begin = Clock::start();
    loader.finish(Version::new(1)).expect("finished");
    let finish = begin.spent();
    report("indexes, statistics, sync", finish, counts.iter().sum(), "rows");
    all += finish;
    report("copy in all", all, counts.iter().sum(), "rows");
}

fn apply(path: &Path, scale: usize) {
    let identity = Identity { app: "zero".into(), shard: 0 };
    let Ok(Opened::Usable(replica)) = Replica::open(path, &identity) else { return println!("not usable") };
    let mut writer = replica.writer().expect("a writer");
    let issue_spec = writer.specs().into_iter().find(|s| s.name == "issue").expect("loaded");
    let mut data = Data { rng: Rng::new(9), issues: 100_000 / scale };
    let mut version = 1;
    // What an update of three columns looks like in the stream: every column, large values included.
    let make = |data: &mut Data, indexed: bool| {
        let n = data.rng.below(data.issues);
        let mut rng = Rng::new(n as u64);
        std::mem::swap(&mut rng, &mut data.rng);
        let block = data.block(1, n..n + 1);
        std::mem::swap(&mut rng, &mut data.rng);
        let mut new: Vec<Cell> = (0..14)
            .map(|c| match block.cell(0, c) {
                CellRef::Text(s) => Cell::Text(s.into()),
                CellRef::Int(i) => Cell::Int(i),
                CellRef::Float(f) => Cell::Float(f),
                CellRef::Bool(b) => Cell::Bool(b),
                CellRef::Null | CellRef::Bytes(_) => Cell::Null,
            })
            .collect();
        new[12] = Cell::Int(data.rng.below(1 << 30) as i64);
        new[13] = Cell::Float(data.rng.below(1 << 30) as f64);
        if indexed {
            new[4] = Cell::Float(1.7e12 + data.rng.below(1 << 30) as f64);
        }
        Change::Update { table: Arc::clone(&issue_spec), key: None, new }
    };
    // The copied rows differ from those that `make` derives; bring them in line first.
    for _ in 0..100 {
        version += 1;
        let changes = (0..data.issues / 25).map(|_| make(&mut data, false)).collect();
        writer.apply(&[Transaction { version: Version::new(version), commit_time_us: 0, changes }]).expect("applied");
    }
    for (what, indexed, size, group) in [
        ("update 2 columns, transactions of 1,000", false, 1000, 1),
        ("update an indexed column too", true, 1000, 1),
        ("update, transactions of 1, 100 a commit", false, 1, 100),
        ("update, transactions of 1, 1 a commit", false, 1, 1),
    ] {
        let commits = 60_000 / scale / (size * group).max(20);
        let mut busy = Spent::default();
        for _ in 0..commits.max(1) {
            let transactions: Vec<Transaction> = (0..group)
                .map(|_| {
                    version += 1;
                    let changes = (0..size).map(|_| make(&mut data, indexed)).collect();
                    Transaction { version: Version::new(version), commit_time_us: 0, changes }
                })
                .collect();
            let begin = Clock::start();
            writer.apply(&transactions).expect("applied");
            busy += begin.spent();
        }
        report(what, busy, commits.max(1) * size * group, "rows");
    }
}

fn scan(reader: &mut Reader) {
    let table = Arc::clone(&reader.schema().tables["issue"]);
    let column = |name| table.position(name).expect("a column");
    let recent = SortKey(vec![(column("modified"), Direction::Desc), (column("id"), Direction::Desc)]);
    let filter = ivm::filter::Filter::And(Vec::new());
    let key = SortKey(vec![(column("id"), Direction::Asc)]);
    let mut plan =
        ScanPlan { id: 1, table: Arc::clone(&table), constraint: vec![], filter, order: recent, start: None };
    for (what, limit) in [("scan 10,000 issues by an index", 10_000), ("again", 10_000)] {
        let begin = Clock::start();
        let mut bytes = 0;
        let each = &mut |row: rows::Row| {
            bytes += row.size();
            ControlFlow::Continue(())
        };
        reader.scan(&plan, ScanArgs { limit: Some(limit), ..ScanArgs::default() }, each).expect("scanned");
        report(what, begin.spent(), limit as usize, "rows");
        assert!(bytes > 0, "there are issues");
    }
    plan = ScanPlan { id: 2, order: key, constraint: vec![column("id")], ..plan };
    let begin = Clock::start();
    let mut found = 0;
    for n in 0..10_000_usize {
        let key = rows::Key::from_values(&[Value::Str(issue(n * 7919 % 1000).into())]);
        let args = ScanArgs { constraint: Some(&key), ..ScanArgs::default() };
        let each = &mut |_| {
            found += 1;
            ControlFlow::Continue(())
        };
        reader.scan(&plan, args, each).expect("scanned");
    }
    assert_eq!(found, 10_000);
    report("10,000 lookups by key", begin.spent(), found, "rows");
}

fn eq(column: &str, value: Value) -> Condition {
    Condition::Compare { column: column.into(), op: Op::Eq, value: Literal::One(value) }
}

fn text(s: &str) -> Value {
    Value::Str(s.into())
}

fn query(
    table: &str,
    filter: Condition,
    order: &[(&str, Direction)],
    limit: Option<u64>,
    related: Vec<Related>,
) -> Query {
    let order_by = order.iter().map(|&(c, d)| (c.to_owned(), d)).collect();
    Query { table: table.into(), filter, order_by, start: None, limit, related }
}

fn join(parent: &str, child: &str, query: Query) -> Related {
    Related { parent: vec![parent.into()], child: vec![child.into()], query }
}

fn exists(negated: bool, related: Related) -> Condition {
    Condition::Exists { negated, synced: true, related: Box::new(related) }
}

fn all() -> Condition {
    Condition::And(Vec::new())
}

fn has_label(name: &str) -> Condition {
    let label = exists(false, join("labelID", "id", query("label", eq("name", text(name)), &[], None, vec![])));
    exists(false, join("id", "issueID", query("issueLabel", label, &[], None, vec![])))
}

fn queries(reader: &mut Reader) {
    const RECENT: &[(&str, Direction)] = &[("modified", Direction::Desc), ("id", Direction::Desc)];
    let open = || eq("open", Value::Bool(true));
    let project = || eq("projectID", text("p003"));
    let comment_by =
        exists(false, join("id", "issueID", query("comment", eq("creatorID", text("u000001")), &[], None, vec![])));
    let list = |filter, related| query("issue", filter, RECENT, Some(100), related);
    let labels = || {
        join(
            "id",
            "issueID",
            query(
                "issueLabel",
                all(),
                &[],
                None,
                vec![join("labelID", "id", query("label", all(), &[], None, vec![]))],
            ),
        )
    };
    let creator = || join("creatorID", "id", query("user", all(), &[], None, vec![]));
    let comments = |limit| {
        let order: &[(&str, Direction)] = &[("created", Direction::Desc), ("id", Direction::Desc)];
        join("id", "issueID", query("comment", all(), order, limit, vec![]))
    };
    let ilike = Condition::Compare { column: "title".into(), op: Op::ILike, value: Literal::One(text("%cursor%")) };
    let cases: Vec<(&str, Query)> = vec![
        ("pointLookup", query("issue", eq("id", text("i00000500")), &[], Some(1), vec![])),
        ("listFiltered", list(Condition::And(vec![open(), project()]), vec![])),
        ("listRelated", list(open(), vec![comments(None), labels(), creator()])),
        ("listRelated, 10 comments each", list(open(), vec![comments(Some(10)), labels(), creator()])),
        ("whereExistsLabel, rare", list(has_label("label-049"), vec![])),
        ("whereExistsLabel, middling", list(has_label("label-020"), vec![])),
        ("whereExistsLabel, common", list(has_label("label-000"), vec![])),
        ("whereExistsLabel, absent", list(has_label("no such label"), vec![])),
        (
            "orOfExists",
            list(
                Condition::Or(vec![has_label("label-049"), comment_by.clone(), eq("assigneeID", text("u000001"))]),
                vec![],
            ),
        ),
        (
            "orOfExists, middling label",
            list(Condition::Or(vec![has_label("label-020"), comment_by, eq("assigneeID", text("u000001"))]), vec![]),
        ),
        (
            "notExists",
            list(
                Condition::And(vec![
                    project(),
                    exists(true, join("id", "issueID", query("comment", all(), &[], None, vec![]))),
                ]),
                vec![],
            ),
        ),
        ("likeSearch", list(ilike, vec![])),
        ("large (a project's issues)", query("issue", project(), RECENT, None, vec![])),
    ];
    let schema = reader.schema();
    for (name, query) in cases {
        let mut graph = match Graph::build(&query, &schema, &|table| table.key.clone()) {
            Ok(graph) => graph,
            Err(e) => {
                println!("{name}: {e}");
                continue;
            }
        };
        for round in ["first", "again"] {
            let mut count = 0;
            let mut fresh = Graph::build(&query, &schema, &|table| table.key.clone()).expect("built before");
            if round == "again" {
                std::mem::swap(&mut fresh, &mut graph);
            }
            let mut traced = Traced { reader: &mut *reader, scans: 0, slowest: (Duration::ZERO, String::new()) };
            let begin = Clock::start();
            fresh.hydrate(&mut traced, &mut |_| count += 1).expect("hydrated");
            let spent = begin.spent();
            report(&format!("{name} ({round}, {} scans)", traced.scans), spent, count, "rows");
            if spent.wall > Duration::from_millis(15) {
                println!("    {:?} {}", traced.slowest.0, traced.slowest.1);
            }
        }
    }
}

/// Remembers the slowest scan and how SQLite ran it.
struct Traced<'a> {
    reader: &'a mut Reader,
    scans: usize,
    slowest: (Duration, String),
}

impl Source for Traced<'_> {
    fn scan(
        &mut self,
        plan: &ScanPlan,
        args: ScanArgs<'_>,
        each: &mut dyn FnMut(rows::Row) -> ControlFlow<()>,
    ) -> Result<(), ivm::source::SourceError> {
        let begin = Instant::now();
        self.reader.scan(plan, args, each)?;
        self.scans += 1;
        let elapsed = begin.elapsed();
        if elapsed > self.slowest.0 {
            let how = if elapsed > Duration::from_millis(5) {
                format!("{:?}", self.reader.explain(plan, args)?)
            } else {
                String::new()
            };
            self.slowest = (elapsed, how);
        }
        Ok(())
    }
}
