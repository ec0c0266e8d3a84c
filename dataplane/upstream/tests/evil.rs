//! What a server, or something in between, may send: nothing of it ends the stream for good unless it must, and nothing panics.

use std::time::Duration;

use fault::Class;
use rows::Cell;
use testkit::evil::{Evil, Frame, From, Verdict, error_response, message_bytes};
use upstream::{Error, Event, Stream};

use crate::model::{Fixture, MARK, Model, catch_up, copied, resume, settle};

const TABLE: &str = "CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL, n int);
    INSERT INTO item SELECT n, 'name ' || n, n FROM generate_series(1, 20) n;";

struct World {
    fixture: Fixture,
    evil: Evil,
    /// Through the relay.
    options: upstream::Options,
    model: Model,
}

impl World {
    async fn start() -> World {
        let fixture = Fixture::start(&format!("{MARK}{TABLE}")).await;
        let evil = Evil::start(fixture.postgres.port()).await.unwrap();
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", evil.port());
        let mut options = fixture.options.clone();
        options.address = url.parse().unwrap();
        let (_, model) = copied(&options).await;
        World { fixture, evil, options, model }
    }

    async fn stream(&self) -> Stream {
        let at = upstream::Resume {
            replica: self.initial(),
            after: self.model.version,
            confirmed: self.model.version,
            time_us: self.model.commit_time_us,
        };
        Stream::start(&self.options, at).await.unwrap()
    }

    fn initial(&self) -> rows::Version {
        self.model.initial
    }

    /// What ends the stream.
    async fn failure(&mut self, stream: &mut Stream) -> Error {
        let ended = async {
            loop {
                match stream.next().await {
                    Ok(Event::Transaction(transaction)) => self.model.apply(transaction),
                    Ok(Event::Keepalive { .. }) => {}
                    Err(error) => return error,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the stream ends")
    }
}

/// Alters the rows of logical replication that hold `needle`.
fn spoiling(
    needle: &'static [u8],
    spoil: impl Fn(&mut Vec<u8>, usize) + Send + 'static,
) -> impl FnMut(&Frame) -> Verdict + Send {
    move |frame| {
        let Some(message) = frame.replicated() else { return Verdict::Pass };
        match message.windows(needle.len()).position(|window| window == needle) {
            Some(at) => {
                let mut message = message.to_vec();
                spoil(&mut message, at);
                Verdict::Instead(frame.replicating(&message))
            }
            None => Verdict::Pass,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_with_an_unreadable_value_is_left_out_and_comes_back() {
    let mut world = World::start().await;
    world.model.lacks_rows = true;
    world.evil.script(spoiling(b"spoiled", |message, at| message[at] = 0xff));
    let mut stream = world.stream().await;
    world
        .fixture
        .run("INSERT INTO item VALUES (30, 'spoiled', 1), (31, 'good', 1); UPDATE item SET name = 'spoiled' WHERE id = 3; INSERT INTO item VALUES (32, 'good', 2)")
        .await;
    catch_up(&mut stream, &mut world.model, &world.fixture.client).await;
    let rows = world.model.sorted("item");
    assert_eq!(rows.len(), 21, "{rows:?}");
    assert!(!rows.iter().any(|row| row.contains("Int(30)") || row.starts_with("[Int(3),")), "{rows:?}");
    world.fixture.run("UPDATE item SET name = 'mended' WHERE id IN (3, 30)").await;
    world.fixture.run("UPDATE item SET n = 9 WHERE id = 3; DELETE FROM item WHERE id = 30").await;
    catch_up(&mut stream, &mut world.model, &world.fixture.client).await;
    settle(&mut stream, &mut world.model, &world.fixture.postgres).await;
}

/// A copy leaves the row out as well, and tells of the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_leaves_out_a_row_that_cannot_be_read() {
    let world = World::start().await;
    world.evil.script(|frame| {
        let is_copy =
            frame.from == From::Server && frame.tag == b'd' && &*frame.application == "zero-initial-sync-copy-worker";
        match frame.body.windows(7).position(|window| window == b"name 13") {
            Some(at) if is_copy => {
                let mut body = frame.body.clone();
                body[at] = 0xfe;
                Verdict::Instead(message_bytes(frame.tag, &body))
            }
            _ => Verdict::Pass,
        }
    });
    let (_, model) = copied(&world.options).await;
    assert_eq!(model.sorted("item").len(), 19);
}

/// Messages that cannot be understood end the stream, are the same when they come again, and pass when they do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_cannot_be_understood_are_told_from_lost_connections() {
    let mut world = World::start().await;
    type Spoil = fn(&mut Vec<u8>, usize);
    let spoils: [(&str, Spoil); 5] = [
        ("an unknown message", |message, _| message[0] = b'?'),
        ("a length beyond the message", |message, at| message[at - 4] = 0x7f),
        ("a message that ends early", |message, at| message.truncate(at)),
        ("a row of another number of columns", |message, _| message[6..8].copy_from_slice(&[0, 9])),
        ("an unknown kind of column", |message, at| message[at - 5] = b'?'),
    ];
    for (n, (name, spoil)) in spoils.into_iter().enumerate() {
        world.evil.script(spoiling(b"garbled", spoil));
        let mut stream = world.stream().await;
        world.fixture.run(&format!("INSERT INTO item VALUES ({}, 'garbled', 1)", 100 + n)).await;
        let first = world.failure(&mut stream).await;
        let again = {
            let mut stream = world.stream().await;
            world.failure(&mut stream).await
        };
        for error in [&first, &again] {
            assert!(matches!(error, Error::Garbled { .. }), "{name}: {error}");
        }
        assert_eq!(first.to_string(), again.to_string(), "{name}");
        assert_eq!((first.entry().class, first.entry().repeated), (Class::Passes, Class::NewCopy));
        world.evil.relent();
        let mut stream = world.stream().await;
        catch_up(&mut stream, &mut world.model, &world.fixture.client).await;
    }
    let mut stream = world.stream().await;
    settle(&mut stream, &mut world.model, &world.fixture.postgres).await;
}

/// Lengths of the outer protocol that no message has; nothing is reserved for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absurd_lengths_end_the_connection() {
    let mut world = World::start().await;
    for length in [0_u32, 3, u32::MAX, (1 << 30) + 5] {
        world.evil.script(move |frame| match frame.replicated() {
            Some([b'I', ..]) => Verdict::Instead([&[b'd'][..], &length.to_be_bytes()].concat()),
            _ => Verdict::Pass,
        });
        let mut stream = world.stream().await;
        world.fixture.run("INSERT INTO item SELECT max(id) + 1, 'x', 1 FROM item").await;
        let error = world.failure(&mut stream).await;
        assert!(matches!(error, Error::Garbled { .. }), "{length}: {error}");
    }
}

/// A relation that is not the table's, keepalives that go back, transactions that come twice, and a stream that is cut anywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_contradicts_is_never_applied() {
    let mut world = World::start().await;
    // Twice: the second is known already.
    let mut open = Vec::new();
    world.evil.script(move |frame| {
        let Some(message) = frame.replicated() else { return Verdict::Pass };
        if message[0] == b'B' {
            open.clear();
        }
        open.extend(frame.bytes());
        if message[0] == b'C' {
            Verdict::Instead([frame.bytes(), std::mem::take(&mut open)].concat())
        } else {
            Verdict::Pass
        }
    });
    let mut stream = world.stream().await;
    world.fixture.run("INSERT INTO item VALUES (40, 'twice', 1); UPDATE item SET n = n + 1 WHERE id = 40").await;
    catch_up(&mut stream, &mut world.model, &world.fixture.client).await;
    settle(&mut stream, &mut world.model, &world.fixture.postgres).await;
    drop(stream);

    // Back to the beginning of time: nothing is acknowledged for it.
    world.evil.script(|frame| {
        let is_keepalive = frame.from == From::Server && frame.tag == b'd' && frame.body.first() == Some(&b'k');
        if !is_keepalive {
            return Verdict::Pass;
        }
        let mut body = frame.body.clone();
        body[1..9].fill(0);
        body[17] = 1;
        Verdict::Instead(message_bytes(frame.tag, &body))
    });
    let mut stream = world.stream().await;
    world.fixture.run("INSERT INTO item VALUES (41, 'x', 1)").await;
    catch_up(&mut stream, &mut world.model, &world.fixture.client).await;
    assert!(world.model.sorted("item").iter().any(|row| row.contains("Int(41)")));
    drop(stream);

    // Cut in the middle of any message: the next stream has it.
    for at in [1, 5, 30, 60] {
        world.evil.script(move |frame| {
            if matches!(frame.replicated(), Some([b'I', ..])) { Verdict::Cut(at) } else { Verdict::Pass }
        });
        let mut stream = world.stream().await;
        world.fixture.run(&format!("INSERT INTO item VALUES ({}, 'cut', 1)", 50 + at)).await;
        let error = world.failure(&mut stream).await;
        assert_eq!((error.entry().class, error.entry().repeated), (Class::Passes, Class::Passes), "{error}");
    }
    world.evil.relent();
    let mut stream = world.stream().await;
    catch_up(&mut stream, &mut world.model, &world.fixture.client).await;
    settle(&mut stream, &mut world.model, &world.fixture.postgres).await;
    drop(stream);

    // Another column under the same name: what it is cannot be known without another copy.
    world.evil.script(|frame| match frame.replicated() {
        Some([b'R', rest @ ..]) => {
            let mut message = [&[b'R'][..], rest].concat();
            match message.windows(4).position(|window| window == [0, 0, 0, 25]) {
                Some(at) => {
                    message[at + 3] = 17;
                    Verdict::Instead(frame.replicating(&message))
                }
                None => Verdict::Pass,
            }
        }
        _ => Verdict::Pass,
    });
    let mut stream = world.stream().await;
    world.fixture.run("INSERT INTO item VALUES (42, 'x', 1)").await;
    let error = world.failure(&mut stream).await;
    assert_eq!(error.entry().class, Class::NewCopy, "{error}");
}

/// Every statement of ours may be refused with any code; each refusal has the class of its code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_statements_have_the_class_of_their_code() {
    let world = World::start().await;
    for (code, statement, class) in [
        ("53300", "START_REPLICATION", Class::Passes),
        ("57P01", "START_REPLICATION", Class::Passes),
        ("XX000", "START_REPLICATION", Class::Passes),
        ("42501", "START_REPLICATION", Class::Person),
        ("28000", "START_REPLICATION", Class::Person),
        ("0A000", "START_REPLICATION", Class::Person),
        ("55000", "START_REPLICATION", Class::NewCopy),
        ("42704", "START_REPLICATION", Class::NewCopy),
        ("57014", "SELECT (SELECT setting FROM pg_settings", Class::Passes),
    ] {
        world.evil.script(move |frame| {
            if frame.is_query(statement) { Verdict::Answer(error_response(code, "no")) } else { Verdict::Pass }
        });
        let at = upstream::Resume {
            replica: world.initial(),
            after: world.model.version,
            confirmed: world.model.version,
            time_us: world.model.commit_time_us,
        };
        let error = Stream::start(&world.options, at).await.unwrap_err();
        assert_eq!(error.entry().class, class, "{code} at {statement}: {error}");
    }
}

/// Without the publication Postgres refuses to go on, for ever: what was committed meanwhile is not sent for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_publication_needs_a_new_copy() {
    let mut world = World::start().await;
    let mut stream = world.stream().await;
    world.fixture.run("DROP PUBLICATION _zero_public_0").await;
    world.fixture.run("INSERT INTO item VALUES (60, 'x', 1)").await;
    let error = world.failure(&mut stream).await;
    assert!(matches!(&error, Error::ResetRequired { message, .. } if message.contains("_zero_public_0")), "{error}");
    drop(stream);
    // While nobody streamed: its absence is noticed where the stream meets it, and another copy has everything.
    let (_, model) = copied(&world.options).await;
    world.model = model;
    world.fixture.run("DROP PUBLICATION _zero_public_0; INSERT INTO item VALUES (61, 'x', 1)").await;
    let at = upstream::Resume {
        replica: world.initial(),
        after: world.model.version,
        confirmed: world.model.version,
        time_us: world.model.commit_time_us,
    };
    let error = match Stream::start(&world.options, at).await {
        Ok(mut stream) => world.failure(&mut stream).await,
        Err(error) => error,
    };
    assert_eq!(error.entry().class, Class::NewCopy, "{error}");
    let (plan, mut model) = copied(&world.options).await;
    let mut stream = Stream::start(&world.options, resume(&plan, plan.version)).await.unwrap();
    catch_up(&mut stream, &mut model, &world.fixture.client).await;
    assert_eq!(model.sorted("item").len(), 22);
}

/// A publication that the configuration names is created by a person.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_publication_of_the_application_needs_a_person() {
    let fixture = Fixture::start(&format!("{MARK}{TABLE} CREATE PUBLICATION mine FOR TABLE item, mark")).await;
    let mut options = fixture.options.clone();
    options.publications = vec!["mine".to_owned()];
    let (plan, _) = copied(&options).await;
    let mut stream = Stream::start(&options, resume(&plan, plan.version)).await.unwrap();
    fixture.run("DROP PUBLICATION mine; INSERT INTO item VALUES (60, 'x', 1)").await;
    let error = loop {
        if let Err(error) = stream.next().await {
            break error;
        }
    };
    assert_eq!(error.entry().class, Class::Person, "{error}");
    assert!(error.to_string().contains("mine"), "{error}");
    fixture.run("CREATE PUBLICATION mine FOR TABLE item, mark").await;
    let error = match Stream::start(&options, resume(&plan, plan.version)).await {
        Ok(mut stream) => loop {
            if let Err(error) = stream.next().await {
                break error;
            }
        },
        Err(error) => error,
    };
    assert_eq!(error.entry().class, Class::NewCopy, "{error}");
}

/// The default of a new column in a form that is not understood is read from the table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_default_that_cannot_be_read_is_read_from_the_table() {
    let mut world = World::start().await;
    world
        .evil
        .script(spoiling(br#"{\"2024-03-01"#, |message, at| message[at + 3..at + 13].copy_from_slice(b"01.03.2024")));
    let mut stream = world.stream().await;
    world.fixture.run("ALTER TABLE item ADD COLUMN at timestamptz DEFAULT '2024-03-01 12:00:00+00'").await;
    catch_up(&mut stream, &mut world.model, &world.fixture.client).await;
    settle(&mut stream, &mut world.model, &world.fixture.postgres).await;
    let (spec, rows) = world.model.tables.values().find(|(spec, _)| spec.name == "item").unwrap();
    assert_eq!(spec.columns.len(), 4);
    assert!(rows.iter().all(|row| row[3] == Cell::Float(1_709_294_400_000.0)), "{rows:?}");
}

/// While whoever streams from the slot is ended, another process completes a newer copy: its slot may have been told of more than what
/// is stored here, and is none of this replica's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_of_another_copy_is_not_streamed_from() {
    const NEWER: &str = "INSERT INTO zero_0.replicas SELECT (jsonb_populate_record(r,
            jsonb_build_object('id', 'newer', 'slot', 'zero_0_newer', 'rank', r.\"rank\" + 1))).*
        FROM zero_0.replicas r;
        INSERT INTO zero_0.\"schemaHistory\" SELECT (jsonb_populate_record(h, '{\"replica\":\"newer\"}')).*
        FROM zero_0.\"schemaHistory\" h";
    let world = World::start().await;
    let (url, mut looks) = (world.fixture.postgres.url("postgres"), 0);
    world.evil.script(move |frame| {
        let text = String::from_utf8_lossy(&frame.body);
        let is_look = frame.from == From::Client && frame.tag == b'P' && text.contains("\"idleTo\" FROM");
        looks += u32::from(is_look);
        if is_look && looks == 2 {
            // Before this goes on; the relay waits.
            let url = url.clone();
            let made = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let client = upstream::connect(&url.parse().unwrap(), "test").await.unwrap();
                    client.batch_execute(NEWER).await.unwrap();
                });
            });
            made.join().unwrap();
        }
        Verdict::Pass
    });
    let (replica, after) = (world.initial(), world.model.version);
    let at = upstream::Resume { replica, after, confirmed: after, time_us: None };
    let started = Stream::start(&world.options, at).await;
    let error = started.expect_err("it must not begin");
    assert!(matches!(&error, Error::ResetRequired { message, .. } if message.contains("newer copy")), "{error}");
}
