//! Random changes of rows and schema, with kills of the stream: the model equals a fresh copy.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use upstream::{Event, Stream};

use crate::model::{Fixture, MARK, catch_up, copied, resume, settle};

/// One random statement; some fail, which is fine.
fn statement(random: &mut StdRng) -> String {
    let table = ["a", "b", "c"][random.random_range(0..3)];
    let column = ["x", "y", "z"][random.random_range(0..3)];
    let id = random.random_range(0..20);
    let value = ["NULL", "'1'", "'7'", "repeat('8', 20)"][random.random_range(0..4)];
    match random.random_range(0..100) {
        0..35 => format!("INSERT INTO {table} (id, {column}) VALUES ({id}, {value})"),
        35..50 => format!("UPDATE {table} SET {column} = {value} WHERE id < {id}"),
        50..55 => format!("UPDATE {table} SET id = id + 20 WHERE id = {id}"),
        55..65 => format!("DELETE FROM {table} WHERE id = {id}"),
        65..67 => format!("TRUNCATE {table}"),
        67..72 => format!(
            "ALTER TABLE {table} ADD COLUMN {column} text DEFAULT {}",
            ["NULL", "'d'"][random.random_range(0..2)]
        ),
        72..75 => format!("ALTER TABLE {table} ADD COLUMN {column} float8 DEFAULT random()"),
        75..79 => format!("ALTER TABLE {table} DROP COLUMN {column}"),
        79..83 => {
            format!("ALTER TABLE {table} RENAME COLUMN {column} TO {}", ["x", "y", "z"][random.random_range(0..3)])
        }
        83..86 => format!("ALTER TABLE {table} ALTER COLUMN {column} TYPE text"),
        86..88 => format!("DROP TABLE {table}"),
        88..92 => format!("CREATE TABLE {table} (id int PRIMARY KEY, x text, y text)"),
        92..94 => format!("ALTER TABLE {table} RENAME TO {}", ["a", "b", "c"][random.random_range(0..3)]),
        94..96 => format!("ALTER TABLE {table} SET SCHEMA {}", ["hidden", "public"][random.random_range(0..2)]),
        96..98 => format!("ALTER TABLE hidden.{table} SET SCHEMA public"),
        _ => format!("CREATE INDEX ON {table} ({column})"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_sequence_of_changes_and_kills_equals_a_copy() {
    let seed = testkit::seed("any_sequence_of_changes_and_kills_equals_a_copy");
    let mut random = StdRng::seed_from_u64(seed);
    let fixture =
        Fixture::start(&format!("{MARK} CREATE SCHEMA hidden; CREATE TABLE a (id int PRIMARY KEY, x text, y text)"))
            .await;
    let (plan, mut model) = copied(&fixture.options).await;
    let mut stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    for round in 0..12 {
        for _ in 0..40 {
            let count = random.random_range(1..5);
            let statements: Vec<String> = (0..count).map(|_| statement(&mut random)).collect();
            // A failing statement takes its transaction with it.
            let _ = fixture.client.batch_execute(&format!("BEGIN; {}; COMMIT", statements.join("; "))).await;
            fixture.run("ROLLBACK").await;
        }
        // Some transactions are taken, then the stream dies.
        for _ in 0..random.random_range(0..10) {
            match stream.try_next() {
                Some(Ok(Event::Transaction(transaction))) => model.apply(transaction),
                Some(Ok(Event::Keepalive { .. })) => {}
                Some(Err(e)) => panic!("{e}"),
                None => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
        if random.random_bool(0.5) {
            drop(stream);
            stream = Stream::start(&fixture.options, resume(&plan, model.version)).await.unwrap();
        }
        catch_up(&mut stream, &mut model, &fixture.client).await;
        println!("round {round}");
        settle(&mut stream, &mut model, &fixture.postgres).await;
    }
}
